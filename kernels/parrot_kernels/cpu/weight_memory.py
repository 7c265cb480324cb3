"""Memory for packed weights, in huge pages where the system has them.

A step reads every weight once, so the walks through the page table show: huge pages gave 5 to 10 % at one row. Layers
are often smaller than a huge page and therefore share chunks.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from parrot_kernels.untouched import untouched_zeros

CHUNK_BYTES = 64 << 20
"""Address space of a chunk; what is never written takes no memory."""
ALIGNMENT = 64
"""Bytes of a cache line."""


class WeightMemory:
    """Hands out memory in the order of the calls. A chunk is freed when the last tensor in it is."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free = torch.empty(0, dtype=torch.uint8)

    def take(self, num_bytes: int) -> Tensor:
        """Return ``num_bytes`` bytes (uint8), zero, at a multiple of ``ALIGNMENT``."""
        size = -(-num_bytes // ALIGNMENT) * ALIGNMENT
        with self._lock:
            if size > self._free.numel():
                self._free = untouched_zeros((max(size, CHUNK_BYTES),), torch.uint8, huge_pages=True)
            taken, self._free = self._free[:num_bytes], self._free[size:]
        return taken
