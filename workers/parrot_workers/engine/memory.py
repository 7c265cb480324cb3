"""How much memory the KV cache gets, and how many blocks that is."""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch

from parrot_mq.errors import ConfigError
from parrot_workers.engine.paged_cache import LayerShape

CPU_BUDGET_BYTES = 512 * 1024 * 1024
"""The most a cache on a CPU gets unless told; untouched pages cost nothing."""
CPU_FRACTION = 0.25
CUDA_FRACTION = 0.8
"""Of the memory that is free once the model is loaded; the rest is for activations."""


def budget_bytes(device: torch.device) -> int:
    """Return the default budget: a part of the free memory, on a CPU at most ``CPU_BUDGET_BYTES``."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free * CUDA_FRACTION)
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(CPU_BUDGET_BYTES, int(free * CPU_FRACTION))


def num_blocks(
    layers: Iterable[LayerShape], dtype: torch.dtype, block_size: int, memory_bytes: int, *, max_num_tokens: int
) -> int:
    """Return how many blocks ``memory_bytes`` hold, at most twice what ``max_num_tokens`` running tokens need.

    The second half serves as prefix cache. Raises ConfigError if not even one block fits.
    """
    block_bytes = block_size * sum(layer.bytes_per_token(dtype) for layer in layers)
    count = memory_bytes // block_bytes
    if count < 1:
        raise ConfigError(
            f"a KV cache of {memory_bytes} bytes holds no block of {block_bytes} bytes: raise kv_memory_bytes"
        )
    return min(count, 2 * -(-max_num_tokens // block_size))
