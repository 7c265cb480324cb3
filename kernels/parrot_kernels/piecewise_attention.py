"""Attention piece by piece, in torch: what the compiled kernels do, written out for reading and testing."""

from __future__ import annotations

import torch
from torch import Tensor

from parrot_kernels.attention_plan import AttentionPlan, Piece
from parrot_kernels.merge import merge_attention


def piecewise_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    plan: AttentionPlan,
    *,
    scale: float,
    softcap: float | None = None,
    window: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Attend by the pieces of ``plan`` in the order of their keys, merging as they come; see ``Backend``."""
    accumulator = torch.promote_types(query.dtype, torch.float32)
    out = query.new_zeros(*query.shape[:2], value_cache.shape[-1], dtype=accumulator)
    lse = query.new_full(query.shape[:2], float("-inf"), dtype=accumulator)
    positions = plan.arrays.positions.long()
    for piece in sorted(plan.pieces, key=lambda piece: piece.first_key):
        rows = torch.tensor(piece.rows, dtype=torch.int64, device=query.device)
        part, part_lse = _attend(
            query[rows], positions[rows], key_cache, value_cache, piece, accumulator, scale, softcap, window
        )
        out[rows], lse[rows] = merge_attention(out[rows], lse[rows], part, part_lse)
    return out.to(query.dtype), lse.float()


def _attend(
    query: Tensor,
    positions: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    piece: Piece,
    accumulator: torch.dtype,
    scale: float,
    softcap: float | None,
    window: int | None,
) -> tuple[Tensor, Tensor]:
    """Return (out [rows, heads, value_dim], lse [rows, heads]) of the piece's rows over its keys alone."""
    blocks = torch.tensor(piece.blocks, dtype=torch.int64, device=query.device)
    # [blocks, Hkv, 16, D] -> [Hkv, keys, D] -> [H, keys, D]
    keys, values = (
        cache[blocks].transpose(0, 1).flatten(1, 2)[:, : piece.num_keys].to(accumulator)
        for cache in (key_cache, value_cache)
    )
    fold = query.shape[1] // keys.shape[0]
    keys, values = keys.repeat_interleave(fold, 0), values.repeat_interleave(fold, 0)
    scores = torch.einsum("rhd,hkd->rhk", query.to(accumulator), keys) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    numbers = torch.arange(piece.first_key, piece.first_key + piece.num_keys, device=query.device)
    seen = numbers <= positions[:, None]
    if window is not None:
        seen &= numbers > positions[:, None] - window
    scores = scores.masked_fill(~seen[:, None], float("-inf"))
    lse = torch.logsumexp(scores, -1)
    floor = torch.where(torch.isinf(lse), 0.0, lse)
    return torch.einsum("rhk,hkd->rhd", torch.exp(scores - floor[..., None]), values), lse
