"""Keys and values in eight bits: ``float8_e4m3fn``, with a scale for the keys and one for the values of a cache.

The cache holds x / scale, rounded to nearest; what is beyond the largest number becomes it. Source of the format:
Micikevicius et al., FP8 Formats for Deep Learning (2022).
"""

from __future__ import annotations

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn
LARGEST = 448.0
"""The largest number of the format; torch makes NaN of larger ones."""


def to_cache(x: Tensor, dtype: torch.dtype, scale: float) -> Tensor:
    """Return ``x`` as a cache of ``dtype`` holds it."""
    return (x * (1 / scale)).clamp(-LARGEST, LARGEST).to(dtype) if dtype is FP8 else x.to(dtype)


def movable(cache: Tensor) -> Tensor:
    """Return the same memory in a dtype that torch can index: it does not know how to move float8."""
    return cache.view(torch.uint8) if cache.dtype is FP8 else cache
