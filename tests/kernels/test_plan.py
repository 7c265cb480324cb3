"""Plans made in C++ are the plans made in Python."""

from __future__ import annotations

import ctypes

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parrot_kernels import AttentionPlan
from parrot_kernels.cpu.backend import CpuBackend
from parrot_kernels.cpu.plan import ARRAYS, NativePlan
from tests.kernels.attention_case import PATHS, SHAPES, AttentionCase, tables


def check(plan: AttentionPlan) -> None:
    native = NativePlan.of(CpuBackend().library, plan)
    expected, actual = plan.arrays, native.plan
    assert (actual.pieces, actual.merges) == (len(plan.pieces), expected.merge_rows.numel())
    assert actual.num_parts == expected.num_parts
    for name in ARRAYS:
        values: torch.Tensor = getattr(expected, name)
        pointer = getattr(actual, name)
        found = (ctypes.c_int32 * values.numel()).from_address(pointer) if values.numel() else []
        assert list(found) == values.tolist(), name
    assert NativePlan.of(CpuBackend().library, plan) is native


@settings(max_examples=200, deadline=None)
@given(
    sequences=st.lists(st.tuples(PATHS, st.integers(1, 100), st.integers(1, 40)), max_size=12),
    padding=st.integers(0, 3),
    share=st.booleans(),
)
def test_any_batch(sequences: list[tuple[str, int, int]], padding: int, share: bool) -> None:
    query_lens, contexts, blocks = tables(sequences)
    check(AttentionPlan(query_lens, contexts, blocks, num_rows=sum(query_lens) + padding, share=share))


def test_long_contexts_and_the_usual_shapes() -> None:
    shared = list(range(200))
    tables = [shared[:190], [*shared[:180], *range(300, 320)], shared[:185]]
    check(AttentionPlan([1, 2, 40], [3000, 3100, 2900], tables))
    for shape in SHAPES.values():
        check(AttentionCase(shape, (1, 1), 64, torch.float32).plan())


def test_equal_tables_of_sequences_without_a_key_of_their_own() -> None:
    check(AttentionPlan([1, 1, 3], [96, 96, 96], [list(range(6))] * 3))
