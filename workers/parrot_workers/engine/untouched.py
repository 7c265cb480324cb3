"""Zeros that take no memory until they are written."""

from __future__ import annotations

import math
import mmap

import torch
from torch import Tensor


def untouched_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return zeros [*shape]; on a CPU a page of them is taken when it is first written.

    ``torch.zeros`` writes its zeros, so that a cache would take all its memory at the start, for seconds.
    """
    size = math.prod(shape)
    if device.type != "cpu" or not size:
        return torch.zeros(shape, dtype=dtype, device=device)
    # Private, so that it goes with the process; page-aligned; unmapped with the last tensor that uses it.
    pages = mmap.mmap(-1, size * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=dtype).view(shape)
