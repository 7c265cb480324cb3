"""The softmax of a tile of rows, a step of keys at a time; and the merge of rows whose keys were several programs'.

Scores are in powers of two: exp2 is one instruction. Source: Dao, FlashAttention-2 (2023), section 3.1.
"""

from __future__ import annotations

import triton
import triton.language as tl

BLOCK: tl.constexpr = tl.constexpr(16)  # BLOCK_SIZE of attention_plan
LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def blocks_of(table: tl.tensor, KEYS: tl.constexpr) -> tl.tensor:
    """Return the block [KEYS] of each key from the first one of the block at ``table`` on.

    Whatever stands in the list behind the blocks of an item is read too: its keys are not.
    """
    return tl.load(table + tl.arange(0, KEYS) // BLOCK)


@triton.jit
def attend_keys(
    q: tl.tensor,
    position: tl.tensor,
    maximum: tl.tensor,
    total: tl.tensor,
    acc: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    block: tl.tensor,
    key: tl.tensor,
    end: tl.tensor,
    common: tl.tensor,
    scale: tl.tensor,
    softcap: tl.tensor,
    window: tl.tensor,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    KEYS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    SPREAD: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Add the keys from ``key`` on, up to ``KEYS`` and before ``end``, to the running softmax of the rows.

    ``keys`` and ``values`` are those of a KV head in block 0, ``block`` [KEYS] the block of each. ``key`` is a multiple
    of the block size. All rows see the keys before ``common``. ``total`` [M] and ``acc`` [M, DIM] are relative to
    2 ** ``maximum``, the highest score so far (-inf: none); if ``SPREAD``, ``total`` [M, KEYS] is still to be summed.
    """
    lane = tl.arange(0, KEYS)
    number = key + lane
    is_key = number < end
    # Written so that an address costs one multiplication: addresses can be half of the instructions of a step.
    line = block.to(tl.int64) * (KV_HEADS * BLOCK * DIM)
    within = (lane % BLOCK * DIM)[:, None] + tl.arange(0, DIM)[None, :]
    # Behind `end` lies what nobody has written yet, perhaps NaN: it is not read, for 0 * NaN is NaN.
    k = tl.load(keys + line[:, None] + within, mask=is_key[:, None], other=0.0)
    v = tl.load(values + line[:, None] + within, mask=is_key[:, None], other=0.0)
    k = k.to(q.dtype)  # from fp8, and to float32 in the interpreter, whose arithmetic in bfloat16 is wrong
    v = v.to(q.dtype)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    if HAS_SOFTCAP:  # softcap * tanh(scale * scores / softcap), of which Triton has no tanh
        power = tl.exp2(scores * (2.0 * LOG2_E * scale / softcap))
        scores = 1.0 - 2.0 / (power + 1.0)
        factor = softcap * LOG2_E
    else:
        factor = scale * LOG2_E
    last = tl.minimum(position, end - 1)
    if HAS_WINDOW:
        is_seen = (number[None, :] <= last[:, None]) & (number[None, :] > position[:, None] - window)
        scores = tl.where(is_seen, scores, float("-inf"))
    elif key + KEYS > common:  # seldom, and a mask is a third of the work besides the products
        scores = tl.where(number[None, :] <= last[:, None], scores, float("-inf"))
    # The factor is positive, so it can wait for the difference, where it is part of one multiply-add.
    highest = tl.maximum(maximum, tl.max(scores, 1) * factor)
    floor = tl.where(highest == float("-inf"), 0.0, highest)  # -inf - -inf is NaN
    weights = tl.exp2(scores * factor - floor[:, None])
    shrink = tl.exp2(maximum - floor)
    total = total * shrink[:, None] + weights if SPREAD else total * shrink + tl.sum(weights, 1)
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
    INTERPRETED: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Return (out [M, DIM], lse [M] in base 2) of the rows ``is_last``, from their ``count`` <= ``most`` parts."""
    maximum = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    acc = tl.zeros([M, DIM], tl.float32)
    # Twice the same, as in the kernel. As many parts are fetched ahead as take the place of a step of keys.
    if INTERPRETED:
        number = 0
        while number < most:
            is_there = is_last & (number < count)
            maximum, total, acc = _add_part(
                part_out, part_lse, part + number * HEADS, is_there, maximum, total, acc, DIM
            )
            number += 1
    else:
        for number in tl.range(0, most, num_stages=2 if M > 32 else 1 + 64 // M):
            is_there = is_last & (number < count)
            maximum, total, acc = _add_part(
                part_out, part_lse, part + number * HEADS, is_there, maximum, total, acc, DIM
            )
    acc = acc / tl.where(total > 0, total, 1.0)[:, None]
    return acc, maximum + tl.log2(tl.where(total > 0, total, 1.0))


@triton.jit
def _add_part(
    part_out: tl.tensor,
    part_lse: tl.tensor,
    at: tl.tensor,
    is_there: tl.tensor,
    maximum: tl.tensor,
    total: tl.tensor,
    acc: tl.tensor,
    DIM: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Add the part ``at`` of each row, where it is there, to the running sums."""
    dims = tl.arange(0, DIM)
    # What others wrote is visible by the acquire before. Past the first-level cache, for nobody reads it again.
    log = tl.load(part_lse + at, mask=is_there, other=float("-inf"), cache_modifier=".cg")
    value = tl.load(
        part_out + (at * DIM)[:, None] + dims[None, :], mask=is_there[:, None], other=0.0, cache_modifier=".cg"
    )
    highest = tl.maximum(maximum, log)
    floor = tl.where(highest == float("-inf"), 0.0, highest)
    shrink = tl.exp2(maximum - floor)
    weight = tl.exp2(log - floor)
    # Which product is rounded is said, for tiles of any size must come to the same bits.
    acc = tl.fma(value, weight[:, None], acc * shrink[:, None])
    return highest, tl.fma(total, shrink, weight), acc
