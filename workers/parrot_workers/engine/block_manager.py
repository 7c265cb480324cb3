"""Blocks of the KV cache: who holds them, what is in them, which is given away next.

A full block is content-addressed by a chained hash of (parent's hash, its token ids), the chain starting at the
tenant's salt, so that equal prefixes of one tenant share blocks and no other's ever do. A block is

    held      by ``ref_count`` sequences; never given away,
    cached    if a hash points to it; it keeps its content after its last holder has left,
    free      in ``_free``, the least recently used first, whether cached or not,
    kept      in ``_kept`` instead, in the same order, if its content is retained: given away after all that are free.

What a cached block holds when it is given away goes to the host tier, if there is one, and is found there as well.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from parrot_workers.engine.block_hash import extend_hashes
from parrot_workers.engine.host_tier import HostTier, Transfers
from parrot_workers.engine.retention import Retentions
from parrot_workers.engine.sequence import Sequence

CachedPrefix = list[int | None]
"""The blocks of a prefix that need not be computed; None: its content is in host memory."""


class BlockManager:
    """Gives blocks of ``block_size`` tokens to sequences and takes them back. No tensor is touched here.

    With a ``tier`` the caller must make the copies of ``take_transfers`` before each step.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int = 16,
        *,
        enable_prefix_caching: bool = True,
        tier: HostTier | None = None,
    ) -> None:
        if num_blocks < 1:
            raise ValueError(f"a KV cache needs at least one block, got {num_blocks}")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        self.num_touched_blocks = 0
        """Blocks that were ever given to anybody: the first so many, for unused ones are given in order."""
        self._tier = tier
        self._ref_counts = [0] * num_blocks
        self._hashes: list[bytes | None] = [None] * num_blocks
        self._cached: dict[bytes, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._kept: OrderedDict[int, None] = OrderedDict()
        self._retentions = Retentions()

    @property
    def num_free_blocks(self) -> int:
        """Blocks that no sequence holds, cached and retained ones included."""
        return len(self._free) + len(self._kept)

    @property
    def num_cached_blocks(self) -> int:
        """Blocks that can be found by content."""
        return len(self._cached)

    @property
    def num_reloaded_blocks(self) -> int:
        """Blocks whose content came back from host memory, in all."""
        return self._tier.num_loaded_blocks if self._tier is not None else 0

    def num_blocks_for(self, num_tokens: int) -> int:
        """Blocks that ``num_tokens`` tokens need."""
        return -(-num_tokens // self.block_size)

    def match(self, sequence: Sequence, *, whole: bool = False) -> CachedPrefix:
        """Return the longest cached prefix of ``sequence``, its last token left to compute unless ``whole``.

        It ends sooner where computing the rest is predicted to be cheaper than copying it from host memory. Valid until
        the next call that changes anything.
        """
        if not self.enable_prefix_caching:
            return []
        limit = (sequence.num_tokens - (not whole)) // self.block_size
        self._extend_hashes(sequence, limit)
        prefix: CachedPrefix = []
        has_loads = False
        for digest in sequence.block_hashes[:limit]:
            block = self._cached.get(digest)
            if block is None:
                if self._tier is None or digest not in self._tier:
                    break
                has_loads = True
            prefix.append(block)
        if has_loads and self._tier is not None:
            del prefix[self._tier.cost.worthwhile([block is None for block in prefix]) :]
        return prefix

    def has_next(self, sequence: Sequence) -> bool:
        """Whether the block that ``sequence`` computes next has been published by another."""
        index = sequence.num_computed_tokens // self.block_size
        if not self.enable_prefix_caching or (index + 1) * self.block_size > sequence.num_tokens:
            return False
        self._extend_hashes(sequence, index + 1)
        return sequence.block_hashes[index] in self._cached

    def num_free_after_hold(self, prefix: CachedPrefix) -> int:
        """Free blocks that would be left if ``prefix`` were held, retained ones included."""
        return self.num_free_blocks - sum(1 for block in prefix if block is None or self._ref_counts[block] == 0)

    def num_unretained_after_hold(self, prefix: CachedPrefix) -> int:
        """Free blocks that would be left if ``prefix`` were held, without those whose content is retained."""
        return len(self._free) - sum(1 for block in prefix if block is None or block in self._free)

    def hold(self, sequence: Sequence, prefix: CachedPrefix) -> None:
        """Give an empty-handed ``sequence`` the blocks of its cached ``prefix``, filled from host memory where need be.

        There must be a free block for each that is.
        """
        assert not sequence.block_table, "a sequence that holds blocks cannot start from cached ones"
        # Before any block is taken for the others: that gives content away, on the device and in the tier.
        for digest, block in zip(sequence.block_hashes, prefix, strict=False):
            if block is not None:
                self._hold(block)
            elif self._tier is not None:
                self._tier.pin(digest)
        for digest, block in zip(sequence.block_hashes, prefix, strict=False):
            sequence.block_table.append(self._load(digest) if block is None else block)
        sequence.num_published_blocks = len(prefix)

    def grow(self, sequence: Sequence, num_tokens: int) -> bool:
        """Give ``sequence`` the blocks it lacks for ``num_tokens`` tokens; False, and nothing given, if too few."""
        table = sequence.block_table
        if num_tokens <= len(table) * self.block_size:
            return True
        lacking = self.num_blocks_for(num_tokens) - len(table)
        if lacking > self.num_free_blocks:
            return False
        for _ in range(lacking):
            table.append(self._take())
        return True

    def shrink(self, sequence: Sequence, num_tokens: int) -> None:
        """Take back the blocks that ``sequence`` does not need for ``num_tokens`` tokens, none of them published."""
        needed = self.num_blocks_for(num_tokens)
        assert needed >= sequence.num_published_blocks, f"{sequence.id} gives back blocks that others may read"
        while len(sequence.block_table) > needed:
            self._drop(sequence.block_table.pop())

    def publish(self, sequence: Sequence, num_tokens: int) -> None:
        """Make the full blocks among the first ``num_tokens`` tokens findable; all of those must be certain.

        Called when those tokens are scheduled: a step writes the keys and values of a layer before it reads any, so
        that sequences of the same step may already share them.
        """
        num_full = num_tokens // self.block_size
        if num_full <= sequence.num_published_blocks or not self.enable_prefix_caching:
            return
        self._extend_hashes(sequence, num_full)
        for index in range(sequence.num_published_blocks, num_full):
            digest, block = sequence.block_hashes[index], sequence.block_table[index]
            if digest not in self._cached:
                self._cached[digest] = block
                self._hashes[block] = digest
        sequence.num_published_blocks = num_full

    def release(self, sequence: Sequence) -> None:
        """Take back everything ``sequence`` holds; cached blocks keep their content until they are given away."""
        # From the tail, so that a prefix's first blocks, which more sequences can use, are given away last.
        for block in reversed(sequence.block_table):
            self._drop(block)
        sequence.block_table = []
        sequence.num_published_blocks = 0

    def retain(self, key: str, token_ids: list[int], salt: str, until_s: float) -> None:
        """Keep the full blocks of a prefix, those that are cached and those that will be, until ``release_hint(key)``
        or ``until_s``; the same key again replaces what it kept. They are given away only when nothing else is free.
        """
        self.release_hint(key)
        digests: list[bytes] = []
        extend_hashes(digests, token_ids, salt, len(token_ids) // self.block_size, self.block_size)
        self._retentions.add(key, digests, until_s)
        for digest in reversed(digests):
            block = self._cached.get(digest)
            if block is not None and block in self._free:
                del self._free[block]
                self._kept[block] = None

    def release_hint(self, key: str) -> None:
        """Keep nothing more for ``key``; unknown ones are ignored. What it kept counts as just used."""
        for digest in reversed(self._retentions.remove(key)):
            block = self._cached.get(digest)
            if block is not None and block in self._kept:
                del self._kept[block]
                self._free[block] = None

    def expire_hints(self, now_s: float) -> None:
        """Release the hints whose time is up, on the clock that ``retain`` was given times of."""
        for key in self._retentions.due(now_s):
            self.release_hint(key)

    def take_transfers(self) -> Transfers:
        """Return the copies to make before the next step; they count as made from now on."""
        return self._tier.take_transfers() if self._tier is not None else Transfers()

    def forget(self) -> None:
        """Empty the prefix cache and the host tier. Blocks that are held stay with their holders, who must not wait for
        a copy from host memory.
        """
        if self._tier is not None:
            assert not any(self._ref_counts[block] for block in self._tier.loading), "a copy that is waited for is lost"
            self._tier.forget()
        self._cached.clear()
        self._hashes = [None] * self.num_blocks
        self._free.update(self._kept)
        self._kept.clear()

    def check(self, sequences: Iterable[Sequence]) -> None:
        """Raise AssertionError unless the books agree with each other and with the block tables of ``sequences``."""
        counts = [0] * self.num_blocks
        for sequence in sequences:
            table = sequence.block_table
            assert len(set(table)) == len(table), f"{sequence.id} holds a block twice: {table}"
            assert sequence.num_computed_tokens <= len(table) * self.block_size, f"{sequence.id} outgrew its blocks"
            for block in table:
                counts[block] += 1
        assert counts == self._ref_counts, "reference counts differ from the block tables"
        hashes = {digest: block for block, digest in enumerate(self._hashes) if digest is not None}
        assert hashes == self._cached, "hashes of blocks and the prefix cache differ"
        free = {block for block, count in enumerate(counts) if count == 0}
        kept = {block for block in free if self._hashes[block] in self._retentions}
        assert kept == set(self._kept), "the blocks that are kept differ from those whose content is retained"
        assert free - kept == set(self._free), "the free list differs from the blocks that nobody holds"
        if self._tier is not None:
            self._tier.check()

    def _hold(self, block: int) -> None:
        if self._ref_counts[block] == 0:
            if block in self._free:
                del self._free[block]
            else:
                del self._kept[block]
        self._ref_counts[block] += 1

    def _drop(self, block: int) -> None:
        self._ref_counts[block] -= 1
        assert self._ref_counts[block] >= 0, f"block {block} was freed twice"
        if self._ref_counts[block]:
            return
        digest = self._hashes[block]
        if digest in self._retentions:
            self._kept[block] = None
            return
        self._free[block] = None
        if digest is None:
            self._free.move_to_end(block, last=False)

    def _take(self) -> int:
        block, _ = (self._free or self._kept).popitem(last=False)
        digest = self._hashes[block]
        if digest is not None:
            del self._cached[digest]
            self._hashes[block] = None
            if self._tier is not None:
                self._tier.store(digest, block)
                self._tier.cancel_load(block)
        self._ref_counts[block] = 1
        self.num_touched_blocks = max(self.num_touched_blocks, block + 1)
        return block

    def _load(self, digest: bytes) -> int:
        assert self._tier is not None, "content of host memory without host memory"
        block = self._take()
        self._tier.load(digest, block)
        self._cached[digest] = block
        self._hashes[block] = digest
        return block

    def _extend_hashes(self, sequence: Sequence, num_blocks: int) -> None:
        if len(sequence.block_hashes) < num_blocks:
            extend_hashes(sequence.block_hashes, sequence.token_ids, sequence.source.salt, num_blocks, self.block_size)
