"""When a common prefix is better read once: a small model of what attention costs on one device.

Read once, a prefix costs its bytes, the padding of its tiles of rows, and a part more of each row, which is written,
read again and merged. Read by everybody it costs the bytes again each time, though from the second-level cache where
the readers run side by side.

``PARROT_MQ_SHARED_ATTENTION=off`` in the environment has every sequence read its keys by itself: to measure what
sharing gains, or to rule it out.
"""

from __future__ import annotations

import dataclasses
import os

from parrot_kernels.errors import KernelInputError

ENVIRONMENT = "PARROT_MQ_SHARED_ATTENTION"
NARROW_ROWS = 16
"""The fewest rows that a matrix product of the tensor cores takes."""


def is_shared() -> bool:
    """Return what the environment says; sharing is on by default. Raises ``KernelInputError`` for any other word."""
    word = os.environ.get(ENVIRONMENT, "on")
    if word not in ("on", "off"):
        raise KernelInputError(f"{ENVIRONMENT}={word} is neither on nor off")
    return word == "on"


@dataclasses.dataclass(frozen=True, slots=True)
class AttentionShape:
    """What attention is computed over: ``key_bytes`` is the size of an element of the cache."""

    heads: int
    kv_heads: int
    head_dim: int
    key_bytes: int = 2

    @property
    def fold(self) -> int:
        """Query heads of a KV head: they read the same keys, so they are rows of the same tile."""
        return self.heads // self.kv_heads

    @property
    def bytes_per_key(self) -> int:
        """Bytes of a token's key and value, all heads."""
        return 2 * self.kv_heads * self.head_dim * self.key_bytes

    def flops(self, packed_rows: int, num_keys: int) -> int:
        """Operations of ``packed_rows`` (query row x head of one KV head) over ``num_keys``, for all KV heads."""
        return 4 * packed_rows * num_keys * self.head_dim * self.kv_heads

    @property
    def narrow(self) -> int:
        """Rows of the smallest tile: it holds all query heads of a KV head."""
        return max(NARROW_ROWS, 1 << (self.fold - 1).bit_length())


@dataclasses.dataclass(frozen=True, slots=True)
class SharingCost:
    """Rates of a whole device; the defaults are a guess for an H100 or H200, ``calibrate`` measures them.

    ``bytes_per_s``: keys and values from memory. ``reread_bytes_per_s``: those that another reads at the same time.
    ``flops_per_s``: of both matrix products, in tiles. ``part_s``: to write, read and merge the output of one row and
    head. ``item_s``: to begin and end a tile of one KV head, of many that run side by side. ``launch_s``: the kernel's
    own time with nothing to do. With ``share`` false nothing is shared, whatever it costs; by default ``is_shared``.
    """

    bytes_per_s: float = 3.8e12
    reread_bytes_per_s: float = 6e12
    flops_per_s: float = 3.5e14
    part_s: float = 0.4e-9
    item_s: float = 10e-9
    launch_s: float = 4e-6
    share: bool = dataclasses.field(default_factory=is_shared)

    def pays(self, shape: AttentionShape, wide: int, num_keys: int, num_rows: int, num_readers: int) -> bool:
        """Return whether ``num_keys`` common keys of ``num_rows`` rows are better read once, in tiles of ``wide`` rows,
        than by each of ``num_readers`` pieces that follow."""
        if not self.share:
            return False
        once = self._read_s(shape, wide, num_keys, num_rows, 1)
        parts = num_rows * shape.heads * self.part_s
        return once + parts < self._read_s(shape, wide, num_keys, num_rows, num_readers)

    def _read_s(self, shape: AttentionShape, wide: int, num_keys: int, num_rows: int, num_readers: int) -> float:
        """Return the time of the keys alone when ``num_readers`` read them, each for its share of the rows.

        Who reads the keys anyway pays no item for it, so items count for one reader only.
        """
        packed = -(-num_rows // num_readers) * shape.fold
        if packed <= shape.narrow:
            tiles, padded = 1, shape.narrow
        else:
            tiles = -(-packed // (wide // shape.fold * shape.fold))
            padded = tiles * wide
        size = num_keys * shape.bytes_per_key
        reads = size / self.bytes_per_s + (tiles * num_readers - 1) * size / self.reread_bytes_per_s
        products = shape.flops(padded * num_readers, num_keys) / self.flops_per_s
        begin = tiles * shape.kv_heads * self.item_s if num_readers == 1 else 0.0
        return max(reads, products) + begin

    def key_weight(self, rows: int, shape: AttentionShape) -> float:
        """Return the time of a key for a tile of ``rows``, as a multiple of the time to read it."""
        products = shape.flops(rows, 1) / self.flops_per_s
        return max(1.0, products * self.bytes_per_s / shape.bytes_per_key)


def default_cost(shape: AttentionShape) -> SharingCost:
    """Return the defaults, whatever the shape."""
    return SharingCost()
