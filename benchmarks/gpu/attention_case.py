"""A batch of decoding requests over several layers of cache, and what attention over it must give, in float64."""

from __future__ import annotations

import dataclasses
import functools
import math

import torch
from torch import Tensor

from benchmarks.gpu.tree import Floor, Tree
from parrot_kernels.attention_plan import BLOCK_SIZE
from parrot_kernels.gpu.attention_bench import AttentionBench, tree_tables
from parrot_kernels.gpu.sharing_cost import AttentionShape, SharingCost

COLD_CACHES = 6
"""Times the second-level cache that the layers hold together: a layer is gone from it when its turn comes again."""
MAX_LAYERS = 64
MAX_ERROR = 0.01
"""Norm of a head's error over that of its output. bfloat16 weights and outputs give 0.002 to 0.005; to leave out a
single average key of 8192 already gives 0.02."""


def num_layers(floor: Floor, cache_bytes: int) -> int:
    """Return the layers of a rotation that finds nothing in a second-level cache of ``cache_bytes``."""
    return min(MAX_LAYERS, max(2, math.ceil(COLD_CACHES * cache_bytes / floor.shared_bytes)))


def cache_bytes(device: torch.device) -> int:
    """Return the size of the second-level cache; on a CPU, where nothing is measured, none."""
    return torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0


@dataclasses.dataclass(eq=False)
class AttentionCase:
    """A token of each request of ``tree``. ``cost`` is what our kernel decides by."""

    tree: Tree
    shape: AttentionShape
    device: torch.device
    cost: SharingCost

    def __post_init__(self) -> None:
        layers = num_layers(Floor(self.tree, self.shape), cache_bytes(self.device))
        self.tables = tree_tables(self.tree.widths, self.tree.lengths)
        self.bench = AttentionBench(self.shape, self.tree.num_keys // BLOCK_SIZE, self.device, num_layers=layers)
        size = (self.tree.num_requests, self.shape.heads, self.shape.head_dim)
        self.query = torch.randn(size, dtype=torch.bfloat16, device=self.device)

    @property
    def num_layers(self) -> int:
        return len(self.bench.keys)

    @property
    def keys(self) -> Tensor:
        """[layers, blocks, kv_heads, 16, head_dim], as ``values``."""
        return self.bench.keys

    @property
    def values(self) -> Tensor:
        return self.bench.values

    @property
    def scale(self) -> float:
        return self.shape.head_dim**-0.5

    @functools.cached_property
    def expected(self) -> Tensor:
        """Attention over the first layer [requests, heads, head_dim] in float64, request by request."""
        return torch.stack([self._attend(query, table) for query, table in zip(self.query, self.tables, strict=True)])

    def _attend(self, query: Tensor, table: list[int]) -> Tensor:
        blocks = torch.tensor(table, device=self.device)
        # [blocks, kv_heads, 16, dim] -> [kv_heads, keys, dim]
        keys, values = (cache[0][blocks].transpose(0, 1).flatten(1, 2).double() for cache in (self.keys, self.values))
        folded = query.view(self.shape.kv_heads, self.shape.fold, -1).double()
        weights = (folded @ keys.transpose(1, 2) * self.scale).softmax(-1)
        return (weights @ values).flatten(0, 1)

    def error(self, out: Tensor) -> float:
        """Return the largest relative error of a head of ``out``; infinity if anything in it is not finite."""
        wrong = (out.view(self.expected.shape).double() - self.expected).norm(dim=-1) / self.expected.norm(dim=-1)
        return float(wrong.max()) if bool(wrong.isfinite().all()) else math.inf
