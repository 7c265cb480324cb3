"""Work lists as what they are, lists of numbers: every key of every row once, and work for every multiprocessor."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parrot_kernels import AttentionPlan
from parrot_kernels.gpu.sharing_cost import AttentionShape, SharingCost
from parrot_kernels.gpu.splits import MIN_RANGE
from parrot_kernels.gpu.work_list import Tiling, WorkList
from tests.kernels.attention_case import PATHS, tables

LLAMA = AttentionShape(heads=32, kv_heads=8, head_dim=128)
H200 = 132
ALWAYS = SharingCost(part_s=0.0, item_s=0.0)
COSTS = {"default": SharingCost(), "always": ALWAYS, "never": SharingCost(share=False)}


def seen(work: WorkList, plan: AttentionPlan) -> dict[int, list[tuple[int, int, int]]]:
    """Return of each row what the kernel computes: (position of a key, its block, its part) in the order of parts."""
    keys: dict[int, list[tuple[int, int, int]]] = {row: [] for row in range(plan.num_tokens)}
    for item in sorted(work.items, key=lambda item: item.ordinal):
        for row in work.rows[item.first_entry : item.first_entry + item.num_entries]:
            for offset in range(item.num_keys):
                if item.first_key + offset <= plan.positions[row]:
                    block = work.blocks[item.first_block + offset // 16]
                    keys[row].append((item.first_key + offset, block, item.ordinal))
    return keys


def check(plan: AttentionPlan, tiling: Tiling, cost: SharingCost) -> WorkList:
    work = WorkList.of(plan, tiling, cost)
    computed = seen(work, plan)
    expected: list[list[tuple[int, int]]] = []
    for query_len, context_len, table in zip(plan.query_lens, plan.context_lens, plan.block_tables, strict=True):
        keys = [(key, table[key // 16]) for key in range(context_len)]
        expected += [keys[: position + 1] for position in range(context_len - query_len, context_len)]
    expected += [[]] * (plan.num_tokens - len(expected))
    assert [[key[:2] for key in computed[row]] for row in range(plan.num_tokens)] == expected
    # Every part is made once, parts of a row are neighbours, and no two rows have the same.
    made: dict[int, list[int]] = {row: [] for row in range(plan.num_tokens)}
    for item in work.items:
        assert item.first_key % 16 == item.num_keys % 16 == 0
        assert item.num_entries * tiling.shape.fold <= tiling.wide
        for row in work.rows[item.first_entry : item.first_entry + item.num_entries]:
            made[row].append(item.ordinal)
    assert [sorted(ordinals) for ordinals in made.values()] == [list(range(count)) for count in work.part_count]
    shared = [
        work.part_start[row] + ordinal for row, ordinals in made.items() if len(ordinals) > 1 for ordinal in ordinals
    ]
    assert sorted(shared) == list(range(work.num_parts))
    weight = [item.num_keys * cost.key_weight(tiling.tile_rows(item.num_entries), tiling.shape) for item in work.items]
    assert weight == sorted(weight, reverse=True)
    return work


@settings(max_examples=150, deadline=None)
@given(
    sequences=st.lists(st.tuples(PATHS, st.integers(1, 100), st.integers(1, 40)), max_size=8),
    padding=st.integers(0, 40),
    share=st.booleans(),
    heads=st.sampled_from([(1, 1), (8, 2), (12, 2), (64, 1), (40, 1)]),
    wide=st.sampled_from([64, 128]),
    processors=st.sampled_from([1, 4, 50]),
    slack=st.integers(0, 3),
    split_keys=st.booleans(),
    cost=st.sampled_from(list(COSTS)),
)
def test_any_batch(
    sequences: list[tuple[str, int, int]],
    padding: int,
    share: bool,
    heads: tuple[int, int],
    wide: int,
    processors: int,
    slack: int,
    split_keys: bool,
    cost: str,
) -> None:
    query_lens, contexts, blocks = tables(sequences)
    plan = AttentionPlan(query_lens, contexts, blocks, num_rows=sum(query_lens) + padding, share=share)
    tiling = Tiling(AttentionShape(*heads, 64), wide, processors, slack, split_keys)
    work = check(plan, tiling, COSTS[cost])
    if not split_keys and (cost == "never" or not share):
        assert work.num_parts == 0
    for tail in work.tails.values():
        assert work.blocks[tail.end : tail.end + tail.spare] == [0] * tail.spare
        assert all(work.items[item].num_keys for item in tail.items)


def decode(batch: int, prefix: int, own: int, **options: bool) -> AttentionPlan:
    """A batch that shares ``prefix`` keys, each with ``own`` besides."""
    shared = list(range(prefix // 16))
    per_sequence = -(-own // 16)
    owned = [range(len(shared) + i * per_sequence, len(shared) + (i + 1) * per_sequence) for i in range(batch)]
    return AttentionPlan([1] * batch, [prefix + own] * batch, [[*shared, *blocks] for blocks in owned], **options)


@pytest.mark.parametrize(("batch", "prefix"), [(8, 4096), (64, 4096), (64, 8192), (256, 8192), (3, 640)])
def test_a_prefix_is_split_just_enough_for_the_multiprocessors(batch: int, prefix: int) -> None:
    wide = 32 if batch <= 8 else 128
    work = WorkList.of(decode(batch, prefix, 0), Tiling(LLAMA, wide, H200), ALWAYS)
    tiles = -(-batch * LLAMA.fold // wide)
    splits = work.part_count[0]
    assert set(work.part_count) == {splits}
    # Nine tenths of the multiprocessors are busy all the time, or the ranges are as short as they may be.
    rounds = -(-splits * tiles * LLAMA.kv_heads // H200)
    assert splits * tiles * LLAMA.kv_heads >= 0.9 * rounds * H200 or splits == prefix // MIN_RANGE
    assert splits <= -(-H200 // (LLAMA.kv_heads * tiles))


def test_a_second_round_is_not_begun_for_a_few_items() -> None:
    # 64 tiles and heads: in halves they are one round of 132, in thirds two, the second less than half full.
    work = WorkList.of(decode(256, 8192, 0), Tiling(LLAMA, 128, H200), ALWAYS)
    assert work.part_count[0] == 2


def test_long_contexts_alone_are_split_and_short_ones_are_not() -> None:
    one = WorkList.of(decode(1, 0, 100_000), Tiling(LLAMA, 16, H200), SharingCost())
    assert len(one.items) * LLAMA.kv_heads >= H200
    many = WorkList.of(decode(256, 0, 500), Tiling(LLAMA, 16, H200), SharingCost())
    assert many.num_parts == 0


def test_a_group_is_one_piece_where_it_pays() -> None:
    tiling = Tiling(LLAMA, 128, H200)
    for batch, prefix, is_shared in [(32, 2048, True), (8, 4096, True), (2, 16, False), (64, 16, False)]:
        work = WorkList.of(decode(batch, prefix, 40), tiling, SharingCost())
        assert (max(item.num_entries for item in work.items) > 1) == is_shared, (batch, prefix)


def test_a_token_more_in_the_same_block_is_the_same_work() -> None:
    tiling = Tiling(LLAMA, 64, H200, slack=2)
    before, after = (decode(5, 320, own) for own in (33, 48))
    assert WorkList.of(before, tiling, SharingCost()) == WorkList.of(after, tiling, SharingCost())


def test_without_sharing_a_sequence_is_cut_by_its_own_length_alone() -> None:
    ranges = []
    for batch, processors in [(1, H200), (9, 7)]:
        plan = decode(batch, 3000 // 16 * 16, 900, share=False)
        work = check(plan, Tiling(LLAMA, 64, processors, slack=5), SharingCost())
        mine = [item for item in work.items if work.rows[item.first_entry] == 0]
        ranges.append([(item.first_key, item.num_keys, item.ordinal, item.num_entries) for item in mine])
    assert ranges[0] == ranges[1]
    assert [keys for _, keys, _, _ in ranges[0]] == [1024, 1024, 1024, 832]


def test_tiles_of_a_prefill_end_with_the_last_key_they_see() -> None:
    plan = AttentionPlan([200], [1000], [list(range(63))])
    work = check(plan, Tiling(dataclasses.replace(LLAMA, kv_heads=32), 64, 1), SharingCost())
    ends = {work.rows[item.first_entry]: item.first_key + item.num_keys for item in work.items}
    assert ends == {0: 864, 64: 928, 128: 992, 192: 1008}


def test_the_picture_in_the_documentation() -> None:
    shared = list(range(64))
    own = [[*shared, *range(100, 105)], [*shared, *range(200, 206)], list(range(300, 345))]
    plan = AttentionPlan([1, 1, 1], [1102, 1119, 715], own)
    work = check(plan, Tiling(LLAMA, 32, processors=12), SharingCost())
    assert [tuple(item) for item in work.items] == [
        (2, 1, 64, 0, 720, 0),
        (0, 2, 0, 0, 512, 0),
        (0, 2, 32, 512, 512, 1),
        (4, 1, 114, 1024, 96, 2),
        (3, 1, 109, 1024, 80, 2),
    ]
    assert (work.rows, work.part_count, work.part_start) == ([0, 1, 2, 0, 1], [3, 3, 1], [0, 3, 0])
    assert plan.positions == [1101, 1118, 714]
