"""The KV memory of a simulated engine: which blocks are held, which are cached, and which are given away next."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

from parrot_workers.engine.retention import Retentions


class BlockPool:
    """``num_blocks`` blocks, each in one of these states:

    private   of one sequence, with content that nobody else can use (yet); only counted.
    held      by one sequence or more, found by the digest of its content; ``pending`` until that is computed.
    idle      cached and held by nobody: given away when room is needed, least recently used first.
    kept      idle, and retained by a hint: given away after all that are merely idle.
    free      the rest.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._num_private = 0
        self._held: dict[bytes, int] = {}
        self._pending: set[bytes] = set()
        self._idle: OrderedDict[bytes, None] = OrderedDict()
        self._kept: OrderedDict[bytes, None] = OrderedDict()
        self._retentions = Retentions()

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds, cached ones included."""
        return self.num_blocks - self._num_private - len(self._held)

    @property
    def num_cached(self) -> int:
        """Blocks with content that a prompt may be found to begin with."""
        return len(self._held) - len(self._pending) + len(self._idle) + len(self._kept)

    def is_cached(self, digest: bytes) -> bool:
        """Whether a block with this content has been computed and is here."""
        if digest in self._held:
            return digest not in self._pending
        return digest in self._idle or digest in self._kept

    def match(self, digests: Sequence[bytes]) -> int:
        """Return how many blocks of a prompt are cached, from its beginning on."""
        for index, digest in enumerate(digests):
            if not self.is_cached(digest):
                return index
        return len(digests)

    def fits(self, digests: Sequence[bytes], num_private: int) -> bool:
        """Whether ``hold`` is possible."""
        return num_private + sum(digest not in self._held for digest in digests) <= self.num_free

    def fits_unretained(self, digests: Sequence[bytes]) -> bool:
        """Whether these could be held without giving away anything that is retained."""
        num_others_kept = len(self._kept) - sum(digest in self._kept for digest in digests)
        return sum(digest not in self._held for digest in digests) <= self.num_free - num_others_kept

    def hold(self, digests: Iterable[bytes], num_private: int) -> None:
        """Hold blocks for a sequence; what is not cached of them is pending."""
        self._num_private += num_private
        for digest in digests:
            count = self._held.get(digest, 0)
            self._held[digest] = count + 1
            if not count and not self._take_idle(digest):
                self._pending.add(digest)
        self._make_room()

    def computed(self, digests: Iterable[bytes]) -> None:
        """Note that the content of held blocks has been computed."""
        self._pending.difference_update(digests)

    def release(self, digests: Sequence[bytes], num_private: int) -> None:
        """Undo a ``hold``. What was computed stays cached; a prompt's end is given away before its beginning."""
        self._num_private -= num_private
        for digest in reversed(digests):
            count = self._held[digest] - 1
            if count:
                self._held[digest] = count
                continue
            del self._held[digest]
            if digest in self._pending:
                self._pending.remove(digest)
            else:
                self._lay_idle(digest)

    def cache(self, digests: Sequence[bytes]) -> None:
        """Cache blocks that a sequence had as private ones, now that it is done with them."""
        for digest in reversed(digests):
            if digest not in self._held:
                self._take_idle(digest)
                self._lay_idle(digest)
        self._make_room()

    def retain(self, key: str, digests: Sequence[bytes], until_s: float) -> None:
        """Give what has these contents away last, until ``until_s`` or ``unretain``; replaces what ``key`` retained."""
        self.unretain(key)
        self._retentions.add(key, digests, until_s)
        for digest in reversed(digests):
            if digest in self._idle:
                del self._idle[digest]
                self._kept[digest] = None

    def unretain(self, key: str) -> None:
        """End a retention; unknown ones are ignored."""
        for digest in reversed(self._retentions.remove(key)):
            if digest in self._kept:
                del self._kept[digest]
                self._idle[digest] = None

    def expire(self, now_s: float) -> None:
        """End the retentions whose time is up."""
        for key in self._retentions.due(now_s):
            self.unretain(key)

    def check(self, held: Counter[bytes], num_private: int) -> None:
        """Raise AssertionError if what is held is not ``held`` and ``num_private``, or a block is in two states."""
        assert self._held == dict(held), "the blocks that are held are not those of the sequences"
        assert self._num_private == num_private, f"{self._num_private} private blocks, sequences have {num_private}"
        assert self._pending <= self._held.keys(), "a block that nobody holds is being computed"
        cached = [*self._held, *self._idle, *self._kept]
        assert len(cached) == len(set(cached)), "a block is held and idle"
        assert len(cached) + num_private <= self.num_blocks, "more blocks than there are"
        assert all(digest in self._retentions for digest in self._kept), "a block is kept for nobody"
        assert not any(digest in self._retentions for digest in self._idle), "a retained block is given away too soon"

    def _take_idle(self, digest: bytes) -> bool:
        """Take a block out of those that nobody holds; returns whether it was there."""
        for blocks in (self._idle, self._kept):
            if digest in blocks:
                del blocks[digest]
                return True
        return False

    def _lay_idle(self, digest: bytes) -> None:
        (self._kept if digest in self._retentions else self._idle)[digest] = None

    def _make_room(self) -> None:
        excess = len(self._held) + self._num_private + len(self._idle) + len(self._kept) - self.num_blocks
        for _ in range(excess):
            (self._idle or self._kept).popitem(last=False)
