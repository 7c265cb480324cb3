"""The attention kernel: one launch for prefixes, suffixes, decoding and prefill, by a work list in device memory.

A fixed grid of programs strides over the items of the list (see ``work_list``), each for every KV head: the list can
change under a captured CUDA graph. An item multiplies its packed rows with its keys ``KEYS`` at a time and keeps a
running softmax in float32, in powers of two; a row with one part is written out, else the part goes to the workspace
and the last to arrive at a row merges its parts in the order of the keys. So no second launch is needed, no program
ever waits for another, and a row's result does not depend on who came last.

Sources: Dao, FlashAttention-2 (2023), the running softmax; Dao et al., Flash-Decoding (2023), splits and their merge;
Osama et al., Stream-K (2023), the persistent grid over cut work.
"""

from __future__ import annotations

import triton
import triton.language as tl

from parrot_kernels.gpu.interpreter import rounded
from parrot_kernels.gpu.running_softmax import BLOCK, attend_keys, blocks_of, merge_parts

ITEM_FIELDS: tl.constexpr = tl.constexpr(6)  # of work_list.Item
LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)


@triton.jit
def attention_kernel(
    query: tl.tensor,  # [rows, heads, DIM], its strides below
    key_cache: tl.tensor,  # [blocks, KV_HEADS, 16, DIM], as value_cache
    value_cache: tl.tensor,
    out: tl.tensor,  # [rows, heads, DIM], of the query's dtype
    lse: tl.tensor,  # [rows, heads] float32
    part_out: tl.tensor,  # [parts, heads, DIM] float32
    part_lse: tl.tensor,  # [parts, heads] float32, base 2
    arrivals: tl.tensor,  # [rows, heads] int32: zero before and after
    num_items: tl.tensor,  # [1] int32, as all of the work list
    items: tl.tensor,  # [num_items, ITEM_FIELDS]
    rows: tl.tensor,
    blocks: tl.tensor,
    positions: tl.tensor,  # [rows]
    part_start: tl.tensor,  # [rows]
    part_count: tl.tensor,  # [rows]
    query_row_stride: tl.tensor,
    query_head_stride: tl.tensor,
    scale: tl.tensor,  # of the scores; the scale of the keys is in it
    value_scale: tl.tensor,
    softcap: tl.tensor,
    window: tl.tensor,
    KV_HEADS: tl.constexpr,
    FOLD: tl.constexpr,  # query heads of a KV head
    DIM: tl.constexpr,
    NARROW: tl.constexpr,
    WIDE: tl.constexpr,
    KEYS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    INTERPRETED: tl.constexpr,
) -> None:
    """Compute all items. Reads each item's keys and values once for every KV head, its query rows and nothing else."""
    num_work = tl.load(num_items) * KV_HEADS
    num_programs = tl.num_programs(0)
    begin = 0
    turn = tl.program_id(0)
    while begin < num_work:
        # Every other round runs backwards: who had the longest item of one gets the shortest of the next. The KV heads
        # of an item are neighbours, for so are their pages.
        work = begin + turn
        if work < num_work:
            item = items + work // KV_HEADS * ITEM_FIELDS
            kv_head = work % KV_HEADS
            num_entries = tl.load(item + 1)
            if num_entries * FOLD <= NARROW:
                _attend_item(
                    query, key_cache, value_cache, out, lse, part_out, part_lse, arrivals, item, num_entries, kv_head,
                    rows, blocks, positions, part_start, part_count, query_row_stride, query_head_stride, scale,
                    value_scale, softcap, window,
                    NARROW, KV_HEADS, FOLD, DIM, KEYS, HAS_SOFTCAP, HAS_WINDOW, INTERPRETED,
                )  # fmt: skip
            elif WIDE > NARROW:
                _attend_item(
                    query, key_cache, value_cache, out, lse, part_out, part_lse, arrivals, item, num_entries, kv_head,
                    rows, blocks, positions, part_start, part_count, query_row_stride, query_head_stride, scale,
                    value_scale, softcap, window,
                    WIDE, KV_HEADS, FOLD, DIM, KEYS, HAS_SOFTCAP, HAS_WINDOW, INTERPRETED,
                )  # fmt: skip
        begin += num_programs
        turn = num_programs - 1 - turn


@triton.jit
def _attend_item(
    query: tl.tensor,
    key_cache: tl.tensor,
    value_cache: tl.tensor,
    out: tl.tensor,
    lse: tl.tensor,
    part_out: tl.tensor,
    part_lse: tl.tensor,
    arrivals: tl.tensor,
    item: tl.tensor,
    num_entries: tl.tensor,
    kv_head: tl.tensor,
    rows: tl.tensor,
    blocks: tl.tensor,
    positions: tl.tensor,
    part_start: tl.tensor,
    part_count: tl.tensor,
    query_row_stride: tl.tensor,
    query_head_stride: tl.tensor,
    scale: tl.tensor,
    value_scale: tl.tensor,
    softcap: tl.tensor,
    window: tl.tensor,
    M: tl.constexpr,
    KV_HEADS: tl.constexpr,
    FOLD: tl.constexpr,
    DIM: tl.constexpr,
    KEYS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    INTERPRETED: tl.constexpr,
) -> None:
    """Attend in a tile of M packed rows: row ``entry * FOLD + i`` is query head ``kv_head * FOLD + i``."""
    packed = tl.arange(0, M)
    is_row = packed < num_entries * FOLD
    # An item begins with a chain of loads, each of which takes long: nothing that could be asked for waits for another.
    first_entry = tl.load(item)
    table = blocks + tl.load(item + 2)
    first_key = tl.load(item + 3)
    num_keys = tl.load(item + 4)
    ordinal = tl.load(item + 5)
    row = tl.load(rows + first_entry + packed // FOLD, mask=is_row, other=0)
    position = tl.load(positions + row, mask=is_row, other=-1)
    head = kv_head * FOLD + packed % FOLD
    dims = tl.arange(0, DIM)
    # 64-bit: a step's rows x heads x DIM can exceed 2^31.
    at = row.to(tl.int64) * query_row_stride + head * query_head_stride
    q = tl.load(query + at[:, None] + dims[None, :], mask=is_row[:, None], other=0.0)
    if INTERPRETED:
        q = q.to(tl.float32)
    start = first_key
    if HAS_WINDOW:
        # Whole steps only, so that a row's sums are cut at the same keys whatever the window of its tile.
        lowest = tl.min(tl.where(is_row, position, 2147483647), 0) - window + 1
        start += tl.minimum(tl.maximum(lowest - first_key, 0), num_keys) // KEYS * KEYS
    # The block of each key of a step is loaded a step ahead: then the copies of keys and values that the compiler
    # issues ahead wait for no load.
    table += (start - first_key) // BLOCK
    block = blocks_of(table, KEYS)
    end = tl.minimum(first_key + num_keys, tl.max(position, 0) + 1)
    common = tl.minimum(end, tl.min(tl.where(is_row, position + 1, end), 0))  # all rows see the keys before it

    # Of a narrow tile, the keys of a step lie in all warps, and their sum in one of them is a detour through shared
    # memory: it is made once, in the end.
    spread: tl.constexpr = M == 16
    keys = key_cache + kv_head * (BLOCK * DIM)
    values = value_cache + kv_head * (BLOCK * DIM)
    maximum = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M, KEYS] if spread else [M], tl.float32)
    acc = tl.zeros([M, DIM], tl.float32)
    # The same loop twice: only a `for` is pipelined, and some versions of the interpreter cannot run it to a bound that
    # was loaded (triton 3.6 with numpy 2.4).
    if INTERPRETED:
        key = start
        while key < end:
            table += KEYS // BLOCK
            ahead = blocks_of(table, KEYS)
            maximum, total, acc = attend_keys(
                q, position, maximum, total, acc, keys, values, block, key, end, common, scale, softcap, window,
                KV_HEADS, DIM, KEYS, HAS_SOFTCAP, HAS_WINDOW, spread,
            )  # fmt: skip
            block = ahead
            key += KEYS
    else:
        for key in tl.range(start, end, KEYS):
            table += KEYS // BLOCK
            ahead = blocks_of(table, KEYS)
            maximum, total, acc = attend_keys(
                q, position, maximum, total, acc, keys, values, block, key, end, common, scale, softcap, window,
                KV_HEADS, DIM, KEYS, HAS_SOFTCAP, HAS_WINDOW, spread,
            )  # fmt: skip
            block = ahead
    if spread:
        total = tl.sum(total, 1)

    count = tl.load(part_count + row, mask=is_row, other=0)
    first_part = tl.load(part_start + row, mask=is_row, other=0)
    # A row that saw no key: 0 and -inf.
    acc = acc * (value_scale / tl.where(total > 0, total, 1.0))[:, None]
    log = maximum + tl.log2(tl.where(total > 0, total, 1.0))
    place = row.to(tl.int64) * (KV_HEADS * FOLD) + head
    is_whole = is_row & (count <= 1)
    tl.store(out + (place * DIM)[:, None] + dims[None, :], rounded(acc, out.dtype.element_ty), mask=is_whole[:, None])
    tl.store(lse + place, log * LN_2, mask=is_whole)
    if tl.max(count, 0) > 1:
        is_part = is_row & (count > 1)
        part = first_part.to(tl.int64) * (KV_HEADS * FOLD) + head
        mine = part + ordinal.to(tl.int64) * (KV_HEADS * FOLD)
        tl.store(part_out + (mine * DIM)[:, None] + dims[None, :], acc, mask=is_part[:, None])
        tl.store(part_lse + mine, log, mask=is_part)
        # What all threads of this program have stored is there before one of them counts it: the barrier orders the
        # threads, the release half of the atomic orders the stores before the count.
        tl.debug_barrier()
        arrived = tl.atomic_add(arrivals + place, 1, mask=is_part, sem="acq_rel", scope="gpu")
        # And the acquire half what others have stored before the loads of all threads.
        tl.debug_barrier()
        is_last = is_part & (arrived == count - 1)
        most = tl.max(tl.where(is_last, count, 0), 0)
        if most > 0:
            acc, log = merge_parts(part_out, part_lse, part, count, most, is_last, M, KV_HEADS * FOLD, DIM, INTERPRETED)
            tl.store(
                out + (place * DIM)[:, None] + dims[None, :], rounded(acc, out.dtype.element_ty), mask=is_last[:, None]
            )
            tl.store(lse + place, log * LN_2, mask=is_last)
            tl.store(arrivals + place, 0, mask=is_last)  # nobody else comes: ready for the next launch
