"""Rotary embedding of query and key, and the write of key and value into the paged cache, in one launch.

Bytes moved per token: query, key and value read once, the rotated query and the cache's rows written once, and cos and
sin read (from the caches, after the first head). Source: Su et al., RoFormer (2021), in the split-half layout of
transformers' ``rotate_half``; paged cache: Kwon et al., PagedAttention (2023).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from parrot_kernels.gpu.device import on_device_of
from parrot_kernels.gpu.interpreter import rounded
from parrot_kernels.gpu.launch import Launch, launch_for


def rope_and_store(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cos: Tensor,
    sin: Tensor,
    slots: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    launch: Launch | None = None,
    *,
    key_scale: float = 1.0,
    value_scale: float = 1.0,
) -> Tensor:
    """Rotate, store, and return the rotated query [tokens, heads, dim].

    Shapes as in ``Backend.rope_and_store``. The last dimension of query, key, value, cos and sin is contiguous, their
    other strides are free. A slot that is negative or behind the cache is not stored: to raise an error, the host would
    have to wait for the GPU.
    """
    tokens, heads, dim = query.shape
    num_blocks, kv_heads, block_size, value_dim = value_cache.shape
    half = cos.shape[1]
    launch = launch or launch_for(query.device, "rope_and_store", dim)
    tile = max(1, launch.block // triton.next_power_of_2(dim))
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    with on_device_of(query):
        _rope_and_store[tokens, triton.cdiv(heads, tile) + 2 * triton.cdiv(kv_heads, tile)](
            query, key, value, cos, sin, slots, out, key_cache, value_cache,
            query.stride(0), query.stride(1), key.stride(0), key.stride(1), value.stride(0), value.stride(1),
            cos.stride(0), sin.stride(0), num_blocks * block_size, heads, kv_heads, 1 / key_scale, 1 / value_scale,
            BLOCK_SIZE=block_size, DIM=dim, VALUE_DIM=value_dim, HALF=half, HEADS=tile, num_warps=launch.num_warps,
        )  # fmt: skip
    return out


@triton.jit
def _rope_and_store(
    query_ptr: tl.tensor,
    key_ptr: tl.tensor,
    value_ptr: tl.tensor,
    cos_ptr: tl.tensor,
    sin_ptr: tl.tensor,
    slots_ptr: tl.tensor,
    out_ptr: tl.tensor,
    key_cache_ptr: tl.tensor,
    value_cache_ptr: tl.tensor,
    query_stride: tl.tensor,
    query_head_stride: tl.tensor,
    key_stride: tl.tensor,
    key_head_stride: tl.tensor,
    value_stride: tl.tensor,
    value_head_stride: tl.tensor,
    cos_stride: tl.tensor,
    sin_stride: tl.tensor,
    num_slots: tl.tensor,
    heads: tl.tensor,
    kv_heads: tl.tensor,
    key_factor: tl.tensor,
    value_factor: tl.tensor,
    BLOCK_SIZE: tl.constexpr,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    HALF: tl.constexpr,
    HEADS: tl.constexpr,
) -> None:
    """Programs: tokens x tiles of HEADS heads, those of the query first, then those of the key, then the value's."""
    token = tl.program_id(0).to(tl.int64)
    query_tiles = tl.cdiv(heads, HEADS)
    kv_tiles = tl.cdiv(kv_heads, HEADS)
    tile = tl.program_id(1)
    cos_ptr += token * cos_stride
    sin_ptr += token * sin_stride
    if tile < query_tiles:
        head = tile * HEADS + tl.arange(0, HEADS)
        _rotate(
            query_ptr + token * query_stride, query_head_stride, out_ptr + token * heads * DIM, DIM,
            head, heads, cos_ptr, sin_ptr, 1.0, DIM, HALF,
        )  # fmt: skip
    else:
        slot = tl.load(slots_ptr + token)
        if (slot >= 0) & (slot < num_slots):
            block, offset = slot // BLOCK_SIZE, slot % BLOCK_SIZE
            row = block * kv_heads * BLOCK_SIZE + offset
            tile -= query_tiles
            if tile < kv_tiles:
                head = tile * HEADS + tl.arange(0, HEADS)
                _rotate(
                    key_ptr + token * key_stride, key_head_stride, key_cache_ptr + row * DIM, BLOCK_SIZE * DIM,
                    head, kv_heads, cos_ptr, sin_ptr, key_factor, DIM, HALF,
                )  # fmt: skip
            else:
                head = (tile - kv_tiles) * HEADS + tl.arange(0, HEADS)
                _copy(
                    value_ptr + token * value_stride, value_head_stride, value_cache_ptr + row * VALUE_DIM,
                    BLOCK_SIZE * VALUE_DIM, head, kv_heads, value_factor, 0, VALUE_DIM,
                )  # fmt: skip


@triton.jit
def _rotate(
    source_ptr: tl.tensor,
    source_stride: tl.tensor,
    target_ptr: tl.tensor,
    target_stride: tl.tensor,
    head: tl.tensor,
    heads: tl.tensor,
    cos_ptr: tl.tensor,
    sin_ptr: tl.tensor,
    factor: tl.tensor,
    DIM: tl.constexpr,
    HALF: tl.constexpr,
) -> None:
    """Rotate the heads ``head`` < ``heads`` of one token, which are ``stride`` apart: dimension i with HALF + i.

    What is stored is multiplied by ``factor``, which is 1 unless that is float8.
    """
    if HALF > 0:
        i = tl.arange(0, triton.next_power_of_2(HALF))[None, :]
        mask = (head < heads)[:, None] & (i < HALF)
        cos = tl.load(cos_ptr + i, mask=i < HALF, other=0.0)
        sin = tl.load(sin_ptr + i, mask=i < HALF, other=0.0)
        source = source_ptr + head[:, None] * source_stride + i
        first = tl.load(source, mask=mask, other=0.0).to(tl.float32)
        second = tl.load(source + HALF, mask=mask, other=0.0).to(tl.float32)
        target = target_ptr + head[:, None] * target_stride + i
        turned_first, turned_second = (first * cos - second * sin) * factor, (second * cos + first * sin) * factor
        tl.store(target, rounded(turned_first, target_ptr.dtype.element_ty), mask=mask)
        tl.store(target + HALF, rounded(turned_second, target_ptr.dtype.element_ty), mask=mask)
    if 2 * HALF < DIM:
        _copy(source_ptr, source_stride, target_ptr, target_stride, head, heads, factor, 2 * HALF, DIM)


@triton.jit
def _copy(
    source_ptr: tl.tensor,
    source_stride: tl.tensor,
    target_ptr: tl.tensor,
    target_stride: tl.tensor,
    head: tl.tensor,
    heads: tl.tensor,
    factor: tl.tensor,
    START: tl.constexpr,
    END: tl.constexpr,
) -> None:
    """Copy the dimensions START to END of the heads ``head`` < ``heads`` of one token; times ``factor`` to float8."""
    i = START + tl.arange(0, triton.next_power_of_2(END - START))[None, :]
    mask = (head < heads)[:, None] & (i < END)
    values = tl.load(source_ptr + head[:, None] * source_stride + i, mask=mask)
    if target_ptr.dtype.element_ty != source_ptr.dtype.element_ty:
        values = rounded(values.to(tl.float32) * factor, target_ptr.dtype.element_ty)
    tl.store(target_ptr + head[:, None] * target_stride + i, values, mask=mask)
