"""The softmax of a tile of rows, a step of keys at a time; and the merge of rows whose keys were several programs'.

Scores are in powers of two: exp2 is one instruction. Source: Dao, FlashAttention-2 (2023), section 3.1.
"""

from __future__ import annotations

import triton
import triton.language as tl

BLOCK: tl.constexpr = tl.constexpr(16)  # BLOCK_SIZE of attention_plan
LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def blocks_of(
    table: tl.tensor,
    first: tl.tensor,
    end: tl.tensor,
    KEYS: tl.constexpr,
) -> tl.tensor:
    """Return the block [KEYS] of each key from ``first`` on, numbers within the item's range; 0 from ``end`` on."""
    number = first + tl.arange(0, KEYS)
    return tl.load(table + number // BLOCK, mask=number < end, other=0)


@triton.jit
def attend_keys(
    q: tl.tensor,
    position: tl.tensor,
    maximum: tl.tensor,
    total: tl.tensor,
    acc: tl.tensor,
    key_cache: tl.tensor,
    value_cache: tl.tensor,
    block: tl.tensor,
    key: tl.tensor,
    end: tl.tensor,
    kv_head: tl.tensor,
    scale: tl.tensor,
    softcap: tl.tensor,
    window: tl.tensor,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    KEYS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Add the keys from ``key`` on, up to ``KEYS`` and before ``end``, to the running softmax of the rows.

    ``block`` [KEYS] is the block of each. ``total`` and ``acc`` are relative to 2 ** ``maximum``, the highest score so
    far (-inf: none).
    """
    number = key + tl.arange(0, KEYS)
    is_key = number < end
    line = ((block.to(tl.int64) * KV_HEADS + kv_head) * BLOCK + number % BLOCK) * DIM
    dims = tl.arange(0, DIM)
    # Behind `end` lies what nobody has written yet, perhaps NaN: it is not read, for 0 * NaN is NaN.
    k = tl.load(key_cache + line[:, None] + dims[None, :], mask=is_key[:, None], other=0.0)
    v = tl.load(value_cache + line[:, None] + dims[None, :], mask=is_key[:, None], other=0.0)
    k = k.to(q.dtype)  # from fp8, and to float32 in the interpreter, whose arithmetic in bfloat16 is wrong
    v = v.to(q.dtype)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    if HAS_SOFTCAP:  # softcap * tanh(scale * scores / softcap), of which Triton has no tanh
        power = tl.exp2(scores * (2.0 * LOG2_E * scale / softcap))
        scores = (1.0 - 2.0 / (power + 1.0)) * (softcap * LOG2_E)
    else:
        scores = scores * (scale * LOG2_E)
    is_seen = (number[None, :] <= position[:, None]) & is_key[None, :]
    if HAS_WINDOW:
        is_seen = is_seen & (number[None, :] > position[:, None] - window)
    scores = tl.where(is_seen, scores, float("-inf"))
    highest = tl.maximum(maximum, tl.max(scores, 1))
    floor = tl.where(highest == float("-inf"), 0.0, highest)  # -inf - -inf is NaN
    weights = tl.exp2(scores - floor[:, None])
    shrink = tl.exp2(maximum - floor)
    total = total * shrink + tl.sum(weights, 1)
    acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
    return highest, total, acc


@triton.jit
def merge_parts(
    part_out: tl.tensor,
    part_lse: tl.tensor,
    part: tl.tensor,
    count: tl.tensor,
    most: tl.tensor,
    is_last: tl.tensor,
    M: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Return (out [M, DIM], lse [M] in base 2) of the rows ``is_last``, from their ``count`` <= ``most`` parts."""
    dims = tl.arange(0, DIM)
    maximum = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    acc = tl.zeros([M, DIM], tl.float32)
    number = 0
    while number < most:
        is_there = is_last & (number < count)
        at = part + number * HEADS
        # From the second-level cache: the first-level one knows nothing of what other multiprocessors write.
        log = tl.load(part_lse + at, mask=is_there, other=float("-inf"), cache_modifier=".cg")
        value = tl.load(
            part_out + (at * DIM)[:, None] + dims[None, :], mask=is_there[:, None], other=0.0, cache_modifier=".cg"
        )
        highest = tl.maximum(maximum, log)
        floor = tl.where(highest == float("-inf"), 0.0, highest)
        shrink = tl.exp2(maximum - floor)
        weight = tl.exp2(log - floor)
        acc = acc * shrink[:, None] + value * weight[:, None]
        total = total * shrink + weight
        maximum = highest
        number += 1
    acc = acc / tl.where(total > 0, total, 1.0)[:, None]
    return acc, maximum + tl.log2(tl.where(total > 0, total, 1.0))
