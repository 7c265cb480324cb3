"""Zeros that take no memory until they are written."""

from __future__ import annotations

import math
import mmap

import torch
from torch import Tensor

CPU = torch.device("cpu")


def untouched_zeros(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device = CPU, *, huge_pages: bool = False
) -> Tensor:
    """Return zeros [*shape]; on a CPU a page of them is taken when it is first written.

    ``torch.zeros`` writes its zeros, so that a cache would take all its memory at the start, for seconds. With
    ``huge_pages`` the system is asked for pages of 2 MiB, where it has them: right for what is soon written from one
    end to the other and then read again and again, for a page is taken whole.
    """
    size = math.prod(shape)
    if device.type != "cpu" or not size:
        return torch.zeros(shape, dtype=dtype, device=device)
    # Private, so that it goes with the process; page-aligned; unmapped with the last tensor that uses it.
    pages = mmap.mmap(-1, size * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if huge_pages and hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    # By way of bytes, for torch takes a buffer of float8 for none of its dtypes.
    return torch.frombuffer(pages, dtype=torch.uint8).view(dtype).view(shape)
