"""Attention over the paged cache by the Triton kernel: what it takes, and its launch."""

from __future__ import annotations

import torch
from torch import Tensor

from parrot_kernels.attention_plan import AttentionPlan
from parrot_kernels.checks import check_attention, check_plan
from parrot_kernels.fp8 import FP8
from parrot_kernels.gpu.attention import attention_kernel
from parrot_kernels.gpu.device import has_fp8, on_device_of
from parrot_kernels.gpu.device_plan import DevicePlan
from parrot_kernels.gpu.interpreter import INTERPRETED
from parrot_kernels.gpu.sharing_cost import AttentionShape, SharingCost
from parrot_kernels.paged_attention import paged_attention as torch_attention

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HEAD_DIMS = (64, 128)
MAX_FOLD = 64
"""Query heads of one KV head that fit a tile."""


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
    cost: SharingCost | None = None,
) -> tuple[Tensor, Tensor]:
    """Attend by the work list of ``plan``; see ``parrot_kernels.backend.Backend`` for the contract.

    query [rows, heads, dim] may be a slice of a fused projection; caches [blocks, kv_heads, 16, dim]. Reads the keys
    and values of each piece of the plan once for each tile of its rows: 2 * keys * kv_heads * dim elements. Rows with
    several parts write and read 4 * (dim + 1) bytes a part and head besides. ``cost`` decides what is shared. Other
    head dimensions than 64 and 128, scales that are not positive, float64, and float32 over a float8 cache go to the
    torch twin. Raises ``KernelInputError``.
    """
    _, heads, dim = query.shape
    check_attention(query, key_cache, value_cache, [FP8])
    check_plan(plan, query.shape[0], key_cache.shape[0])
    if not _takes(query, key_cache, value_cache, scale):
        return torch_attention(
            query, key_cache, value_cache, plan,
            scale=scale, softcap=softcap, window=window, key_scale=key_scale, value_scale=value_scale,
        )  # fmt: skip
    shape = AttentionShape(heads, key_cache.shape[1], dim, key_cache.dtype.itemsize)
    work = DevicePlan.of(plan, shape, query.device, cost)
    work.check_cache(key_cache.shape[0])
    workspace = work.workspace
    query = query if query.stride(2) == 1 else query.contiguous()
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    lse = torch.empty(query.shape[:2], dtype=torch.float32, device=query.device)
    with on_device_of(query):
        attention_kernel[(work.num_programs,)](
            query, key_cache, value_cache, out, lse, workspace.part_out, workspace.part_lse, workspace.arrivals,
            work.num_items, work.items, work.rows, work.blocks, work.positions, work.part_start, work.part_count,
            query.stride(0), query.stride(1), float(scale * key_scale), float(value_scale), abs(float(softcap or 0.0)),
            int(window or 0),
            KV_HEADS=shape.kv_heads, FOLD=shape.fold, DIM=dim, NARROW=shape.narrow, WIDE=work.tiling.wide,
            KEYS=work.launch.keys, HAS_SOFTCAP=softcap is not None, HAS_WINDOW=window is not None,
            INTERPRETED=INTERPRETED, num_warps=work.launch.num_warps, num_stages=work.launch.num_stages,
        )  # fmt: skip
    return out, lse


def _takes(query: Tensor, key_cache: Tensor, value_cache: Tensor, scale: float) -> bool:
    """Return whether the kernel computes these, of shapes and dtypes that fit one another."""
    _, heads, dim = query.shape
    return (
        query.dtype in DTYPES
        and (key_cache.dtype == query.dtype or _converts_fp8(query))
        and dim in HEAD_DIMS
        and key_cache.shape == value_cache.shape
        and heads // key_cache.shape[1] <= MAX_FOLD
        and scale > 0  # scores are compared before they are scaled
    )


def _converts_fp8(query: Tensor) -> bool:
    """Return whether keys and values are converted from float8 to the query's dtype by its device."""
    return query.dtype in (torch.bfloat16, torch.float16) and has_fp8(query.device)
