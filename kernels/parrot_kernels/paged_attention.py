"""Attention of a flat batch over a paged KV cache, in torch.

The cache of a layer is [num_blocks, num_kv_heads, block_size, head_dim], one tensor for keys and one for values (their
head_dim may differ). This twin gathers the blocks of each of the plan's groups and runs one scaled-dot-product
attention per group, query heads folded onto their KV head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from parrot_kernels.attention_plan import AttentionPlan
from parrot_kernels.fp8 import movable
from parrot_kernels.merge import merge_attention
from parrot_kernels.query_group import QueryGroup

MAX_DENSE_SCORES = 1 << 26
"""Scores that the dense path materialises at once (float32: 256 MiB)."""


def paged_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    plan: AttentionPlan,
    *,
    scale: float,
    softcap: float | None = None,
    window: int | None = None,
    key_scale: float = 1.0,
    value_scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Causal attention by the groups of ``plan``; see ``parrot_kernels.backend.Backend`` for the contract."""
    out, lse = _attend(query, key_cache, value_cache, plan, scale * key_scale, softcap, window)
    return out if value_scale == 1 else out * value_scale, lse


def _attend(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    plan: AttentionPlan,
    scale: float,
    softcap: float | None,
    window: int | None,
) -> tuple[Tensor, Tensor]:
    num_heads, value_dim = query.shape[1], value_cache.shape[-1]
    groups = plan.groups
    if len(groups) == 1 and groups[0].is_contiguous and not plan.is_padded:
        out, lse = _attend_group(query, key_cache, value_cache, groups[0], scale, softcap, window)
        return out.reshape(-1, num_heads, value_dim).contiguous(), lse.reshape(-1, num_heads).float().contiguous()
    out = query.new_zeros(plan.num_tokens, num_heads, value_dim)
    all_lse = query.new_full((plan.num_tokens, num_heads), float("-inf"), dtype=torch.float32)
    for group in groups:
        part, lse = _attend_group(query, key_cache, value_cache, group, scale, softcap, window)
        _scatter(part.reshape(-1, num_heads, value_dim), out, group)
        _scatter(lse.reshape(-1, num_heads).float(), all_lse, group)
    return out, all_lse


def _scatter(part: Tensor, out: Tensor, group: QueryGroup) -> None:
    if group.rows is None:
        out[group.first_row : group.first_row + part.shape[0]] = part
    elif group.is_padded:
        out.index_copy_(0, group.rows.view(-1)[group.last_rows], part[group.last_rows])
    else:
        out.index_copy_(0, group.rows.view(-1), part)


def _attend_group(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    group: QueryGroup,
    scale: float,
    softcap: float | None,
    window: int | None,
) -> tuple[Tensor, Tensor]:
    """Return (out [S, T, H, value_dim], lse [S, T, H]) of a group."""
    seqs, length = group.num_seqs, group.num_queries
    num_heads, head_dim = query.shape[1:]
    num_kv_heads, block_size = key_cache.shape[1:3]
    fold = num_heads // num_kv_heads
    if group.rows is None:
        q = query[group.first_row : group.first_row + seqs * length]
    else:
        q = query.index_select(0, group.rows.view(-1))
    # [S, T, Hkv, G, D] -> [S, Hkv, G * T, D]
    q = q.view(seqs, length, num_kv_heads, fold, head_dim).permute(0, 2, 3, 1, 4)
    q = q.reshape(seqs, num_kv_heads, fold * length, head_dim)
    index = group.gather_index(num_kv_heads)
    shape = (seqs, num_kv_heads, group.num_blocks * block_size)
    k = _gathered(key_cache, index, q.dtype).view(*shape, head_dim)
    v = _gathered(value_cache, index, q.dtype).view(*shape, -1)
    if seqs == 1 and length > 1 and softcap is None and window is None and _has_fused(q, v):
        out, lse = _extend(q, k, v, group, scale)
    else:
        out, lse = _masked(q, k, v, group.mask(q.dtype, fold, window), scale, softcap)
    out = out.view(seqs, num_kv_heads, fold, length, -1).permute(0, 3, 1, 2, 4)
    lse = lse.view(seqs, num_kv_heads, fold, length).permute(0, 3, 1, 2)
    return out, lse


def _gathered(cache: Tensor, index: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the pages [..., block_size * dim] of ``index``: a block of one KV head each."""
    pages = movable(cache).view(-1, cache.shape[2] * cache.shape[3]).index_select(0, index)
    return pages.view(cache.dtype).to(dtype)


def _has_fused(q: Tensor, v: Tensor) -> bool:
    """Whether torch's CPU flash attention, the one that also returns the log-sum-exp, takes these shapes."""
    return q.device.type == "cpu" and q.shape[-1] == v.shape[-1] and q.dtype != torch.float16


def _fused(
    q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None = None, causal: bool = False
) -> tuple[Tensor, Tensor]:
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, causal, attn_mask=mask, scale=scale
    )
    return out, lse


def _extend(q: Tensor, k: Tensor, v: Tensor, group: QueryGroup, scale: float) -> tuple[Tensor, Tensor]:
    """One sequence's chunk without a mask: a full pass over what was cached, a causal one over the chunk, merged."""
    _, num_kv_heads, rows, head_dim = q.shape
    length, cached = group.num_queries, group.cached_len
    # KV heads become the batch, so that the keys of a KV head are shared by its query heads without a copy.
    per_head = q.view(num_kv_heads, rows // length, length, head_dim)
    own_k = k[0, :, None, cached : cached + length].expand(-1, per_head.shape[1], -1, -1)
    own_v = v[0, :, None, cached : cached + length].expand(-1, per_head.shape[1], -1, -1)
    own_out, own_lse = _fused(per_head, own_k, own_v, scale, causal=True)
    own_out = own_out.reshape(1, num_kv_heads, rows, -1)
    own_lse = own_lse.reshape(1, num_kv_heads, rows)
    if not cached:
        return own_out, own_lse
    out, lse = _fused(q, k[:, :, :cached], v[:, :, :cached], scale)
    return merge_attention(out, lse, own_out, own_lse)


def _masked(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    if softcap is None and _has_fused(q, v):
        return _fused(q, k, v, scale, mask)
    rows = q.shape[2]
    step = max(1, MAX_DENSE_SCORES // max(1, q.shape[0] * q.shape[1] * k.shape[2]))
    if rows <= step:
        return _dense(q, k, v, mask, scale, softcap)
    masks = mask.expand(-1, -1, rows, -1)
    parts = [
        _dense(q[:, :, i : i + step], k, v, masks[:, :, i : i + step], scale, softcap) for i in range(0, rows, step)
    ]
    return torch.cat([part[0] for part in parts], 2), torch.cat([part[1] for part in parts], 2)


def _dense(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, softcap: float | None) -> tuple[Tensor, Tensor]:
    """Attention written out, scores in float32 (float64 stays float64)."""
    scores = (q @ k.transpose(-1, -2)).to(torch.promote_types(q.dtype, torch.float32)) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores + mask
    lse = torch.logsumexp(scores, -1)
    return torch.exp(scores - lse.unsqueeze(-1)).to(v.dtype) @ v, lse.float()
