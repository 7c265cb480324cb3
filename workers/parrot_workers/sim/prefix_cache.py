"""Which prompt prefixes a simulated engine still has: blocks of text by chained hash, least recently used out first."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

BYTES_PER_TOKEN = 4


class PrefixCache:
    """Remembers blocks of ``block_size`` tokens (four bytes of text each), at most ``num_blocks`` of them."""

    def __init__(self, block_size: int, num_blocks: int) -> None:
        self._block_bytes = block_size * BYTES_PER_TOKEN
        self._block_size = block_size
        self._num_blocks = num_blocks
        self._blocks: OrderedDict[bytes, None] = OrderedDict()

    def read(self, prompt: str, salt: str) -> int:
        """Return how many tokens of ``prompt`` are cached, whole blocks only; all its blocks are cached afterwards."""
        data = prompt.encode(errors="surrogatepass")
        digest, hits, missed = hashlib.sha256(salt.encode()).digest(), 0, False
        for start in range(0, len(data) - self._block_bytes + 1, self._block_bytes):
            digest = hashlib.sha256(digest + data[start : start + self._block_bytes]).digest()
            missed = missed or digest not in self._blocks
            hits += not missed
            self._blocks[digest] = None
            self._blocks.move_to_end(digest)
        while len(self._blocks) > self._num_blocks:
            self._blocks.popitem(last=False)
        return hits * self._block_size
