"""Keys and values of all layers, in blocks."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch

from parrot_kernels import BLOCK_SIZE
from parrot_kernels.untouched import untouched_zeros


@dataclasses.dataclass(frozen=True, slots=True)
class LayerShape:
    """What a layer keeps per token, and how far back it looks (None: to the start)."""

    num_kv_heads: int
    key_dim: int
    value_dim: int
    window: int | None = None

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        """Bytes of keys and values per token."""
        return self.num_kv_heads * (self.key_dim + self.value_dim) * dtype.itemsize


class KVScale(NamedTuple):
    """A float8 cache of a layer holds keys / ``key`` and values / ``value``; any other has 1 for both."""

    key: float = 1.0
    value: float = 1.0


class PagedCache:
    """Keys and values of all layers: [num_blocks, num_kv_heads, BLOCK_SIZE, head_dim] each, never reallocated.

    Of ``dtype``, which is the model's or float8; ``scales`` are those of a float8 cache, by layer.

    Not in huge pages: attention whose keys lie in memory would take 6 to 10 % less time, but every layer's two tensors
    would take up to a huge page more than was written of them: with ten layers, 240 MB where 202 MB are accounted for.
    """

    def __init__(
        self,
        layers: dict[int, LayerShape],
        num_blocks: int,
        dtype: torch.dtype,
        device: torch.device,
        scales: dict[int, KVScale] | None = None,
    ) -> None:
        self.num_blocks = num_blocks
        self.dtype = dtype
        self.scales = scales or dict.fromkeys(layers, KVScale())
        # Zeros, not empty: masked keys are read too, and 0 * NaN is NaN.
        self.keys = {
            layer: untouched_zeros((num_blocks, shape.num_kv_heads, BLOCK_SIZE, shape.key_dim), dtype, device)
            for layer, shape in layers.items()
        }
        self.values = {
            layer: untouched_zeros((num_blocks, shape.num_kv_heads, BLOCK_SIZE, shape.value_dim), dtype, device)
            for layer, shape in layers.items()
        }
