"""A device plan through the steps of a batch: what each step changes in it, and that attention stays right."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from parrot_kernels import AttentionPlan, KernelInputError
from parrot_kernels.gpu.device_plan import Capacity, DevicePlan
from parrot_kernels.gpu.paged_attention import paged_attention
from parrot_kernels.gpu.plan_change import Change
from parrot_kernels.gpu.sharing_cost import AttentionShape, SharingCost
from parrot_kernels.gpu.work_list import Tiling, WorkList
from tests.kernels.attention_case import AttentionCase

SHAPE = AttentionShape(heads=4, kv_heads=1, head_dim=64, key_bytes=4)
TILING = Tiling(SHAPE, wide=32, processors=20, slack=2)
ALWAYS = SharingCost(part_s=0.0, item_s=0.0)
ROWS = 8


class Batch:
    """Sequences of which each step takes some, as far as they have come; their keys are all in the cache already."""

    def __init__(self, sequences: list[tuple[tuple[tuple[str, int], ...], int, int]], device: torch.device) -> None:
        self.case = AttentionCase(sequences, (SHAPE.heads, SHAPE.kv_heads), SHAPE.head_dim, torch.float32).to(device)
        self.step_query = torch.randn(ROWS, SHAPE.heads, SHAPE.head_dim).to(device)

    def plan(self, contexts: dict[int, int], query_len: int = 1, share: bool = True) -> AttentionPlan:
        tables = [self.case.tables[i][: -(-context // 16)] for i, context in contexts.items()]
        return AttentionPlan([query_len] * len(contexts), list(contexts.values()), tables, num_rows=ROWS, share=share)

    def check(self, work: DevicePlan, contexts: dict[int, int], query_len: int = 1) -> None:
        """Attend by whatever ``work`` holds, through the plan that a graph would have been captured with."""
        captured = AttentionPlan([], [], [], num_rows=ROWS)
        work.bind(captured)
        case = self.case
        out, lse = paged_attention(self.step_query, case.key_cache, case.value_cache, captured, scale=case.scale)
        case.query = self.step_query
        case.query_lens, case.contexts = [query_len] * len(contexts), list(contexts.values())
        tables, case.tables = case.tables, [case.tables[i] for i in contexts]
        rows = query_len * len(contexts)
        if rows:
            expected, expected_lse = case.expected()
            torch.testing.assert_close(out[:rows].double(), expected, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(lse[:rows].double(), expected_lse, rtol=1e-5, atol=1e-5)
        case.tables = tables
        assert not out[rows:].any()


SYSTEM = (("system", 5),)


def test_what_a_step_changes(device: torch.device) -> None:
    batch = Batch([(SYSTEM, 200, 1), (SYSTEM, 200, 1), ((), 200, 1), (SYSTEM, 200, 1)], device)
    capacity = Capacity.for_batches(TILING, ROWS, 60)
    work = DevicePlan(TILING, capacity, device, cost=ALWAYS)
    address = work.items.data_ptr()
    steps: list[tuple[dict[int, int], Change]] = [
        ({0: 95, 1: 130, 2: 150}, Change.CUT),
        ({0: 96, 1: 131, 2: 151}, Change.POSITIONS),
        ({0: 97, 1: 132, 2: 152}, Change.GROWN),  # 0 has a block more
        ({0: 98, 1: 133, 2: 153}, Change.POSITIONS),
        ({0: 113, 1: 133, 2: 161}, Change.GROWN),
        ({0: 114, 1: 134, 2: 162, 3: 90}, Change.CUT),  # 3 has come
        ({0: 115, 1: 135, 2: 163, 3: 91}, Change.POSITIONS),
        ({0: 116, 2: 164, 3: 92}, Change.CUT),  # 1 has gone
        ({0: 116, 2: 165, 3: 93}, Change.POSITIONS),
        ({0: 180, 2: 166, 3: 94}, Change.CUT),  # more than there is room for
        ({0: 180, 2: 150, 3: 94}, Change.CUT),  # back by a block
        ({}, Change.CUT),
    ]
    for contexts, change in steps:
        assert work.update(batch.plan(contexts)) is change, contexts
        batch.check(work, contexts)
    assert work.items.data_ptr() == address


def test_blocks_that_are_exchanged_are_noticed(device: torch.device) -> None:
    batch = Batch([((), 100, 1), ((), 100, 1)], device)
    work = DevicePlan(TILING, Capacity.for_batches(TILING, ROWS, 30), device)
    assert work.update(batch.plan({0: 70, 1: 50})) is Change.CUT
    assert work.update(batch.plan({1: 70, 0: 50})) is Change.CUT
    batch.check(work, {1: 70, 0: 50})


def test_guessed_tokens_move_on_without_a_new_plan(device: torch.device) -> None:
    batch = Batch([(SYSTEM, 200, 1), (SYSTEM, 200, 1)], device)
    work = DevicePlan(TILING, Capacity.for_batches(TILING, ROWS, 30), device, cost=ALWAYS)
    for context, change in [(83, Change.CUT), (86, Change.POSITIONS), (84, Change.POSITIONS), (98, Change.GROWN)]:
        contexts = {0: context, 1: context + 2}
        assert work.update(batch.plan(contexts, query_len=4)) is change
        batch.check(work, contexts, query_len=4)


def test_without_sharing_ranges_stay_where_they_are(device: torch.device) -> None:
    batch = Batch([((), 1100, 1), ((), 1100, 1)], device)
    work = DevicePlan(TILING, Capacity.for_batches(TILING, ROWS, 150), device)
    for contexts, change in [({0: 1008, 1: 400}, Change.CUT), ({0: 1024, 1: 400}, Change.GROWN),
                             ({0: 1025, 1: 401}, Change.CUT)]:  # fmt: skip
        plan = batch.plan(contexts, share=False)
        assert work.update(plan) is change
        batch.check(work, contexts)
        assert work.part_count[:2].tolist() == WorkList.of(plan, TILING, SharingCost()).part_count[:2]


@pytest.mark.parametrize(("field", "room"), [("parts", 5), ("parts", 0), ("entries", 9), ("items", 9)])
def test_what_does_not_fit_is_done_without_sharing_or_splits(field: str, room: int, device: torch.device) -> None:
    batch = Batch([(SYSTEM, 500, 1), (SYSTEM, 300, 1), ((), 400, 1)], device)
    contexts = {0: 430, 1: 200, 2: 399}
    plan = batch.plan(contexts)
    capacity = Capacity.for_batches(TILING, ROWS, 100)
    assert capacity.holds(Capacity.of(WorkList.of(plan, TILING, ALWAYS)))
    small = dataclasses.replace(capacity, **{field: room})
    assert not small.holds(Capacity.of(WorkList.of(plan, TILING, ALWAYS)))
    work = DevicePlan(TILING, small, device, cost=ALWAYS)
    work.update(plan)
    batch.check(work, contexts)


def test_a_batch_that_is_too_large_is_refused(device: torch.device) -> None:
    batch = Batch([((), 200, 1)], device)
    capacity = dataclasses.replace(Capacity.for_batches(TILING, ROWS, 20), blocks=12)
    work = DevicePlan(TILING, capacity, device)
    with pytest.raises(KernelInputError, match="blocks=15"):
        work.update(batch.plan({0: 200}))


def test_a_plan_is_made_once_for_all_layers(device: torch.device) -> None:
    batch = Batch([(SYSTEM, 200, 1), (SYSTEM, 200, 1)], device)
    plan = batch.plan({0: 100, 1: 120})
    made = DevicePlan.of(plan, SHAPE, device)
    assert DevicePlan.of(plan, SHAPE, device) is made
    assert DevicePlan.of(plan, dataclasses.replace(SHAPE, heads=8), device) is not made
    assert made.nbytes >= made.items.nbytes


def test_without_sharing_tiles_are_the_same_in_every_batch(device: torch.device) -> None:
    batch = Batch([((), 300, 1), ((), 300, 1)], device)
    plans = [
        AttentionPlan([query_len], [300], batch.case.tables[:1], share=share)
        for query_len in (1, 9, 200)
        for share in (False, True)
    ]
    wide = [DevicePlan.of(plan, SHAPE, device).tiling.wide for plan in plans]
    assert wide == [64, 16, 64, 64, 64, 128]
