"""Blocks of the KV cache: who holds them, what is in them, which is given away next.

A full block is content-addressed by a chained hash of (parent's hash, its token ids), the chain starting at the
tenant's salt, so that equal prefixes of one tenant share blocks and no other's ever do. A block is

    held      by ``ref_count`` sequences; never given away,
    cached    if a hash points to it; it keeps its content after its last holder has left,
    free      in ``_free``, the least recently used first, whether cached or not.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable

from parrot_workers.engine.sequence import Sequence


class BlockManager:
    """Gives blocks of ``block_size`` tokens to sequences and takes them back. No tensor is touched here."""

    def __init__(self, num_blocks: int, block_size: int = 16, *, enable_prefix_caching: bool = True) -> None:
        if num_blocks < 1:
            raise ValueError(f"a KV cache needs at least one block, got {num_blocks}")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        self._ref_counts = [0] * num_blocks
        self._hashes: list[bytes | None] = [None] * num_blocks
        self._cached: dict[bytes, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))

    @property
    def num_free_blocks(self) -> int:
        """Blocks that no sequence holds, cached ones included."""
        return len(self._free)

    @property
    def num_cached_blocks(self) -> int:
        """Blocks that can be found by content."""
        return len(self._cached)

    def num_blocks_for(self, num_tokens: int) -> int:
        """Blocks that ``num_tokens`` tokens need."""
        return -(-num_tokens // self.block_size)

    def match(self, sequence: Sequence) -> list[int]:
        """Return the cached blocks of the longest cached prefix of ``sequence``, its last token left to compute."""
        if not self.enable_prefix_caching:
            return []
        limit = (sequence.num_tokens - 1) // self.block_size
        self._extend_hashes(sequence, limit)
        blocks: list[int] = []
        for digest in sequence.block_hashes[:limit]:
            block = self._cached.get(digest)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def num_free_after_hold(self, blocks: Iterable[int]) -> int:
        """Free blocks that would be left if ``blocks`` were held."""
        return len(self._free) - sum(1 for block in blocks if self._ref_counts[block] == 0)

    def hold(self, sequence: Sequence, blocks: list[int]) -> None:
        """Give an empty-handed ``sequence`` the cached ``blocks`` of its prefix."""
        assert not sequence.block_table, "a sequence that holds blocks cannot start from cached ones"
        for block in blocks:
            if self._ref_counts[block] == 0:
                del self._free[block]
            self._ref_counts[block] += 1
        sequence.block_table = list(blocks)
        sequence.num_published_blocks = len(blocks)

    def grow(self, sequence: Sequence, num_tokens: int) -> bool:
        """Give ``sequence`` the blocks it lacks for ``num_tokens`` tokens; False, and nothing given, if too few."""
        lacking = self.num_blocks_for(num_tokens) - len(sequence.block_table)
        if lacking > len(self._free):
            return False
        for _ in range(lacking):
            sequence.block_table.append(self._take())
        return True

    def publish(self, sequence: Sequence, num_tokens: int) -> None:
        """Make the full blocks among the first ``num_tokens`` tokens findable.

        Called when those tokens are scheduled: a step writes the keys and values of a layer before it reads any, so
        that sequences of the same step may already share them.
        """
        num_full = num_tokens // self.block_size
        if not self.enable_prefix_caching or num_full <= sequence.num_published_blocks:
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
            self._ref_counts[block] -= 1
            assert self._ref_counts[block] >= 0, f"block {block} was freed twice"
            if self._ref_counts[block] == 0:
                self._free[block] = None
                if self._hashes[block] is None:
                    self._free.move_to_end(block, last=False)
        sequence.block_table = []
        sequence.num_published_blocks = 0

    def forget(self) -> None:
        """Empty the prefix cache. Blocks that are held stay with their holders."""
        self._cached.clear()
        self._hashes = [None] * self.num_blocks

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
        free = {block for block, count in enumerate(counts) if count == 0}
        assert free == set(self._free), "the free list differs from the blocks that nobody holds"
        hashes = {digest: block for block, digest in enumerate(self._hashes) if digest is not None}
        assert hashes == self._cached, "hashes of blocks and the prefix cache differ"

    def _take(self) -> int:
        block, _ = self._free.popitem(last=False)
        digest = self._hashes[block]
        if digest is not None:
            del self._cached[digest]
            self._hashes[block] = None
        self._ref_counts[block] = 1
        return block

    def _extend_hashes(self, sequence: Sequence, num_blocks: int) -> None:
        hashes, size = sequence.block_hashes, self.block_size
        for index in range(len(hashes), num_blocks):
            parent = hashes[-1] if hashes else _root(sequence.source.salt)
            ids = array("q", sequence.token_ids[index * size : (index + 1) * size])
            # The parent is the key, a separate input of BLAKE2: no ids can imitate it.
            hashes.append(hashlib.blake2b(ids.tobytes(), key=parent, digest_size=16).digest())


def _root(salt: str) -> bytes:
    return hashlib.blake2b(salt.encode(), digest_size=16, person=b"tenant salt").digest()
