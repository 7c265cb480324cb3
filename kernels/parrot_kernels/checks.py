"""What compiled operations, C++ or Triton, demand of their tensors, for they trust the pointers.

All raise ``KernelInputError``.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from parrot_kernels.attention_plan import BLOCK_SIZE, AttentionPlan
from parrot_kernels.errors import KernelInputError
from parrot_kernels.fp8 import FP8


def check_norm(x: Tensor, weight: Tensor, residual: Tensor | None = None) -> int:
    """Return the dimension that is normed."""
    dim = x.shape[-1]
    if weight.shape != (dim,) or weight.dtype != x.dtype or not weight.is_contiguous():
        raise KernelInputError(
            f"x is {x.dtype} {tuple(x.shape)}: the weight must be {x.dtype} ({dim},) and contiguous, "
            f"not {weight.dtype} {tuple(weight.shape)}"
        )
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
        raise KernelInputError(f"a residual {residual.dtype} {tuple(residual.shape)} for {tuple(x.shape)}")
    return dim


def check_rope(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cos: Tensor,
    sin: Tensor,
    slots: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
) -> None:
    """Check that all fit one another."""
    tokens, _, dim = query.shape
    kv_heads, block_size, value_dim = value_cache.shape[1:]
    if not (
        key.shape == (tokens, kv_heads, dim)
        and value.shape == (tokens, kv_heads, value_dim)
        and key_cache.shape == (value_cache.shape[0], kv_heads, block_size, dim)
        and cos.shape == sin.shape
        and cos.shape[0] == tokens
        and 2 * cos.shape[1] <= dim
        and slots.shape == (tokens,)
    ):
        shapes = {name: tuple(tensor.shape) for name, tensor in locals().items() if isinstance(tensor, Tensor)}
        raise KernelInputError(f"shapes do not fit one another: {shapes}")
    if not query.dtype == key.dtype == value.dtype:
        raise KernelInputError("query, key and value differ in dtype")
    if key_cache.dtype != value_cache.dtype or key_cache.dtype not in (query.dtype, FP8):
        raise KernelInputError(f"caches of {key_cache.dtype} and {value_cache.dtype}, for keys of {query.dtype}")
    if not (cos.dtype == sin.dtype == torch.float32 and slots.dtype == torch.int64):
        raise KernelInputError(f"cos and sin must be float32, slots int64, not {cos.dtype}, {sin.dtype}, {slots.dtype}")
    if not (key_cache.is_contiguous() and value_cache.is_contiguous()):
        raise KernelInputError("the caches must be contiguous")


def check_attention(
    query: Tensor, key_cache: Tensor, value_cache: Tensor, cache_dtypes: Collection[torch.dtype] = ()
) -> None:
    """Check what does not depend on the plan. The caches are of the query's dtype, or of one of ``cache_dtypes``."""
    _, heads, dim = query.shape
    _, kv_heads, block_size, key_dim = key_cache.shape
    if value_cache.shape[:3] != key_cache.shape[:3] or dim != key_dim or heads % kv_heads:
        raise KernelInputError(
            f"shapes do not fit one another: query {tuple(query.shape)}, caches {tuple(key_cache.shape)}, "
            f"{tuple(value_cache.shape)}"
        )
    if block_size != BLOCK_SIZE:
        raise KernelInputError(f"a cache with blocks of {block_size}: plans are made for {BLOCK_SIZE}")
    if key_cache.dtype != value_cache.dtype or key_cache.dtype not in (query.dtype, *cache_dtypes):
        raise KernelInputError(
            f"query and caches differ in dtype: {query.dtype}, {key_cache.dtype}, {value_cache.dtype}"
        )
    if not (key_cache.is_contiguous() and value_cache.is_contiguous()):
        raise KernelInputError("the caches must be contiguous")


def check_plan(plan: AttentionPlan, tokens: int, num_blocks: int) -> None:
    """Check that ``plan`` is for ``tokens`` and touches no block behind ``num_blocks``."""
    if tokens != plan.num_tokens or num_blocks < plan.num_blocks:
        raise KernelInputError(
            f"a plan for {plan.num_tokens} tokens and {plan.num_blocks} blocks, with {tokens} tokens and "
            f"{num_blocks} blocks"
        )


def check_gather(table: Tensor, index: Tensor) -> None:
    """Check a table [any, width] and an index [rows]."""
    if table.ndim != 2 or table.stride(1) != 1:
        raise KernelInputError(f"want a table [any, width] with contiguous rows, not {tuple(table.shape)}")
    check_index(index)


def check_index(index: Tensor) -> None:
    """Check an index [rows]."""
    if index.ndim != 1 or index.dtype != torch.int64:
        raise KernelInputError(f"want an int64 index [rows], not {index.dtype} {tuple(index.shape)}")


def check_gate_up(gate_up: Tensor) -> int:
    """Return the width of gate and of up."""
    if gate_up.shape[-1] % 2:
        raise KernelInputError(f"{gate_up.shape[-1]} columns are no gate and up of the same width")
    return gate_up.shape[-1] // 2


def check_sampling(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, keys: Tensor
) -> tuple[int, int]:
    """Check what ``Backend.sample`` takes, contiguous but for ``logits``; return how many rows and tokens."""
    if logits.ndim != 2 or not logits.shape[1] or logits.dtype != torch.float32 or logits.stride(1) != 1:
        raise KernelInputError(
            f"want logits [rows, vocab] in float32 with contiguous rows, not {logits.dtype} {tuple(logits.shape)}"
        )
    rows, vocab = logits.shape
    for name, tensor, shape, dtype in [
        ("temperature", temperature, (rows,), torch.float32),
        ("top_k", top_k, (rows,), torch.int32),
        ("top_p", top_p, (rows,), torch.float32),
        ("min_p", min_p, (rows,), torch.float32),
        ("keys", keys, (rows, 2), torch.int32),
    ]:
        if tensor.shape != shape or tensor.dtype != dtype or not tensor.is_contiguous():
            raise KernelInputError(f"want {name} {shape} in {dtype}, not {tuple(tensor.shape)} in {tensor.dtype}")
    return rows, vocab


def with_contiguous_heads(x: Tensor) -> Tensor:
    """Return ``x`` [tokens, heads, dim] such that only the stride between tokens is free."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()
