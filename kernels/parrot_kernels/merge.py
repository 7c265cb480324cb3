"""Attention over two disjoint sets of keys, put together from the outputs and the log-sum-exps of its parts."""

from __future__ import annotations

import torch
from torch import Tensor


def merge_attention(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Merge two partial attentions of the same queries.

    ``out`` is [..., head_dim], ``lse`` [...] in float32, natural logarithm. A part that saw no key has lse = -inf and
    then weighs nothing, whatever its output holds. Returns (out, lse) of the union of the keys. Source: Dao et al.,
    FlashAttention (2022), section 3.1.
    """
    lse = torch.logaddexp(lse_a, lse_b)
    floor = torch.where(torch.isinf(lse), 0.0, lse)
    weight_a = torch.exp(lse_a - floor).unsqueeze(-1)
    weight_b = torch.exp(lse_b - floor).unsqueeze(-1)
    part_a = torch.where(weight_a > 0, out_a.float() * weight_a, 0.0)
    part_b = torch.where(weight_b > 0, out_b.float() * weight_b, 0.0)
    return (part_a + part_b).to(out_a.dtype), lse
