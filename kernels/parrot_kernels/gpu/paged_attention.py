"""Attention over the paged cache by the Triton kernel: what it takes, and its launch."""

from __future__ import annotations

import torch
from torch import Tensor

from parrot_kernels.attention_plan import AttentionPlan
from parrot_kernels.checks import check_attention, check_plan
from parrot_kernels.errors import KernelInputError
from parrot_kernels.gpu.attention import attention_kernel
from parrot_kernels.gpu.device import on_device_of
from parrot_kernels.gpu.device_plan import DevicePlan
from parrot_kernels.gpu.interpreter import INTERPRETED
from parrot_kernels.gpu.sharing_cost import AttentionShape, SharingCost
from parrot_kernels.paged_attention import paged_attention as torch_attention

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FP8 = torch.float8_e4m3fn
"""A cache of this dtype holds keys / key_scale and values / value_scale; the query is bfloat16 or float16."""
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
    head dimensions than 64 and 128, scales that are not positive, and float64 go to the torch twin. Raises
    ``KernelInputError``.
    """
    _, heads, dim = query.shape
    check_attention(query, key_cache, value_cache, _cache_dtypes(query))
    check_plan(plan, query.shape[0], key_cache.shape[0])
    if not _takes(query, key_cache, value_cache, scale):
        if key_cache.dtype != query.dtype:
            raise KernelInputError(
                f"{key_cache.dtype} caches are for head dimensions {HEAD_DIMS} and positive scales, "
                f"not {dim} and {scale}"
            )
        return torch_attention(query, key_cache, value_cache, plan, scale=scale, softcap=softcap, window=window)
    shape = AttentionShape(heads, key_cache.shape[1], dim, key_cache.dtype.itemsize)
    work = DevicePlan.of(plan, shape, query.device, cost)
    if work.num_blocks > key_cache.shape[0]:
        raise KernelInputError(f"a plan for {work.num_blocks} blocks, with {key_cache.shape[0]}")
    query = query if query.stride(2) == 1 else query.contiguous()
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    lse = torch.empty(query.shape[:2], dtype=torch.float32, device=query.device)
    with on_device_of(query):
        attention_kernel[(work.num_programs,)](
            query, key_cache, value_cache, out, lse, work.part_out, work.part_lse, work.arrivals,
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
        and dim in HEAD_DIMS
        and key_cache.shape == value_cache.shape
        and heads // key_cache.shape[1] <= MAX_FOLD
        and scale > 0  # scores are compared before they are scaled
    )


def _cache_dtypes(query: Tensor) -> tuple[torch.dtype, ...]:
    """Return what the caches may be of besides the query's dtype; GPUs before Ada and Hopper cannot convert fp8."""
    if query.dtype not in (torch.bfloat16, torch.float16):
        return ()
    return (FP8,) if query.device.type == "cpu" or torch.cuda.get_device_capability(query.device) >= (8, 9) else ()
