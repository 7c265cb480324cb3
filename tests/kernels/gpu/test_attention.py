"""The attention kernel against float64 and the torch twin, on odd shapes; in Triton's interpreter or on a GPU."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from parrot_kernels import AttentionPlan, KernelInputError
from parrot_kernels.fp8 import FP8
from parrot_kernels.gpu.attention_launch import AttentionLaunch
from parrot_kernels.gpu.device_plan import Capacity, DevicePlan
from parrot_kernels.gpu.paged_attention import paged_attention
from parrot_kernels.gpu.sharing_cost import AttentionShape, SharingCost
from parrot_kernels.gpu.work_list import Tiling, WorkList
from parrot_kernels.paged_attention import paged_attention as torch_attention
from tests.kernels.attention_case import SHAPES, SYSTEM, AttentionCase

OUT_BOUNDS = {torch.float32: 3e-6, torch.float16: 1.5e-3, torch.bfloat16: 1.2e-2}
"""Of values of about 1: a rounding of the result, and natively one of each weight; sums are float32."""
LSE_BOUND = 3e-6
"""Scores are float32 sums of exact products in every dtype."""
ALWAYS = SharingCost(part_s=0.0, item_s=0.0)
BIG_GROUP = [((("system", 3),), 48 + length, 1) for length in (1, 5, 17, 2, 9, 33, 3, 16, 4, 15, 6)]
"""Its rows need a second tile where a tile has few."""


def attend(case: AttentionCase, plan: AttentionPlan, **options: Any) -> tuple[Tensor, Tensor]:
    scale = options.pop("scale", case.scale)
    return paged_attention(case.query, case.key_cache, case.value_cache, plan, scale=scale, **options)


def cut(
    case: AttentionCase,
    plan: AttentionPlan,
    *,
    wide: int,
    keys: int = 16,
    processors: int = 64,
    cost: SharingCost = ALWAYS,
    programs: int = 1,
) -> DevicePlan:
    """Bind ``plan`` to a work list of short ranges and small tiles, so that a small case has all there is."""
    shape = AttentionShape(*case.query.shape[1:2], case.kv_heads, case.query.shape[2], case.key_cache.itemsize)
    tiling = Tiling(shape, wide, processors)
    launch = AttentionLaunch(keys, num_warps=4, num_stages=2, programs_per_processor=programs)
    capacity = Capacity.of(WorkList.of(plan, tiling, cost))
    made = DevicePlan(tiling, capacity, case.query.device, cost=cost, launch=launch)
    made.update(plan)
    made.bind(plan)
    return made


def assert_right(case: AttentionCase, out: Tensor, lse: Tensor, **options: Any) -> None:
    expected, expected_lse = case.expected(**options)
    bound = OUT_BOUNDS[case.query.dtype]
    assert (out.dtype, lse.dtype) == (case.query.dtype, torch.float32)
    assert out.is_contiguous()
    torch.testing.assert_close(out.double(), expected, rtol=bound, atol=bound)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=LSE_BOUND, atol=LSE_BOUND)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("cost", [SharingCost(), ALWAYS, SharingCost(share=False)], ids=["default", "always", "never"])
def test_every_shape(
    shape: list[tuple[tuple[tuple[str, int], ...], int, int]], cost: SharingCost, device: torch.device
) -> None:
    case = AttentionCase(shape, (4, 1), 64, torch.float32).to(device)
    out, lse = attend(case, case.plan(), cost=cost)
    assert_right(case, out, lse)
    twin, twin_lse = torch_attention(case.query, case.key_cache, case.value_cache, case.plan(), scale=case.scale)
    torch.testing.assert_close(out, twin, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lse, twin_lse, rtol=1e-5, atol=1e-5)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sequences=st.lists(
        st.tuples(st.sampled_from(["", "a", "ab", "abc", "b"]), st.integers(1, 90), st.integers(1, 30)),
        min_size=1,
        max_size=5,
    ),
    fold=st.integers(1, 9),
    wide=st.sampled_from([16, 32, 64]),
    keys=st.sampled_from([16, 32, 64]),
    programs=st.integers(1, 3),
    window=st.sampled_from([None, 1, 20, 70]),
    share=st.booleans(),
)
def test_any_batch(
    sequences: list[tuple[str, int, int]],
    fold: int,
    wide: int,
    keys: int,
    programs: int,
    window: int | None,
    share: bool,
    device: torch.device,
) -> None:
    shape = [
        (tuple((letter, 4) for letter in path), 64 * len(path) + own, min(new, 64 * len(path) + own))
        for path, own, new in sequences
    ]
    case = AttentionCase(shape, (fold, 1), 64, torch.float32).to(device)
    plan = case.plan(share=share)
    cut(case, plan, wide=wide, keys=keys, programs=programs)
    assert_right(case, *attend(case, plan, window=window), window=window)


@pytest.mark.parametrize(
    ("heads", "dim", "dtype"),
    [
        ((8, 2), 128, torch.float32),
        ((8, 2), 128, torch.bfloat16),
        ((2, 2), 64, torch.bfloat16),
        ((2, 2), 64, torch.float16),
        ((6, 1), 64, torch.float16),
        ((8, 1), 64, torch.float32),
        ((64, 1), 64, torch.bfloat16),
    ],
    ids=str,
)
def test_dtypes_and_heads(heads: tuple[int, int], dim: int, dtype: torch.dtype, device: torch.device) -> None:
    case = AttentionCase(SHAPES["nested, two groups, and prefill"], heads, dim, dtype).to(device)
    assert_right(case, *attend(case, case.plan(), cost=ALWAYS))


@pytest.mark.parametrize(("softcap", "window"), [(3.0, None), (None, 9), (None, 1), (2.0, 40)])
@pytest.mark.parametrize("cost", [ALWAYS, SharingCost(share=False)], ids=["always", "never"])
def test_softcap_and_window(softcap: float | None, window: int | None, cost: SharingCost, device: torch.device) -> None:
    case = AttentionCase(SHAPES["nested, two groups, and prefill"], (4, 1), 64, torch.float32).to(device)
    out, lse = attend(case, case.plan(), softcap=softcap, window=window, cost=cost)
    assert_right(case, out, lse, softcap=softcap, window=window)


@pytest.mark.parametrize(("wide", "keys", "programs"), [(16, 16, 1), (32, 32, 3), (64, 64, 2)])
def test_groups_of_several_tiles_and_many_splits(wide: int, keys: int, programs: int, device: torch.device) -> None:
    shape = [((("long", 25),), 400 + own, query) for own, query in [(1, 1), (40, 2), (17, 1), (300, 1), (5, 3)]]
    case = AttentionCase([*shape, *BIG_GROUP], (4, 1), 64, torch.float32).to(device)
    plan = case.plan()
    work = cut(case, plan, wide=wide, keys=keys, programs=programs)
    assert max(WorkList.of(plan, work.tiling, ALWAYS).part_count) > 3
    assert_right(case, *attend(case, plan))


def test_padding_rows_are_zero_and_every_element_is_written(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poisoned(shape: tuple[int, ...], **options: Any) -> Tensor:
        return torch.full(shape, math.nan, **options)

    for shape in SHAPES.values():
        case = AttentionCase(shape, (4, 1), 64, torch.float32)
        # Blocks that nobody has, and what lies behind the last key of a sequence, may hold anything.
        case.key_cache[~reachable(case)] = math.nan
        case.value_cache[~reachable(case)] = math.nan
        case.to(device)
        padding = 21
        plan = case.plan(padding=padding)
        cut(case, plan, wide=32).workspace.part_out.fill_(math.nan)
        rows = case.query.shape[0]
        case.query = torch.cat([case.query, torch.full((padding, 4, 64), 50.0, device=device)])
        with monkeypatch.context() as patch:
            patch.setattr("parrot_kernels.gpu.paged_attention.torch.empty", poisoned)
            out, lse = attend(case, plan)
        assert torch.equal(out[rows:], torch.zeros_like(out[rows:]))
        assert bool(torch.isneginf(lse[rows:]).all())
        case.query = case.query[:rows]
        assert_right(case, out[:rows], lse[:rows])


def reachable(case: AttentionCase) -> Tensor:
    """Return which slots [blocks, kv_heads, 16] of the cache hold a key of some sequence."""
    mask = torch.zeros(case.key_cache.shape[:3], dtype=torch.bool)
    for table, context in zip(case.tables, case.contexts, strict=True):
        for position in range(context):
            mask[table[position // 16], :, position % 16] = True
    return mask


def test_nothing_is_written_outside(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Tensor] = []

    def fenced(shape: tuple[int, ...], **options: Any) -> Tensor:
        made.append(torch.full((math.prod(shape) + 256,), 7.0, **options))
        return made[-1][128:-128].view(shape)

    case = AttentionCase(SHAPES["nested, two groups, and prefill"], (4, 1), 64, torch.float32).to(device)
    plan = case.plan()
    work = cut(case, plan, wide=32)
    before = [tensor.clone() for tensor in (case.query, case.key_cache, case.value_cache, work.items, work.blocks)]
    with monkeypatch.context() as patch:
        patch.setattr("parrot_kernels.gpu.paged_attention.torch.empty", fenced)
        out, lse = attend(case, plan)
    assert_right(case, out, lse)
    assert len(made) == 2
    assert all(bool((fence == 7.0).all()) for tensor in made for fence in (tensor[:128], tensor[-128:]))
    after = (case.query, case.key_cache, case.value_cache, work.items, work.blocks)
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))


def test_a_plan_is_used_again_and_again(device: torch.device) -> None:
    case = AttentionCase(SHAPES["shared"], (4, 2), 64, torch.float32).to(device)
    plan = case.plan()
    work = cut(case, plan, wide=16)
    first = attend(case, plan)
    assert int(work.workspace.arrivals.abs().sum()) == 0
    work.workspace.part_out.fill_(math.nan)
    second = attend(case, plan)
    assert_right(case, *second)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_who_comes_last_changes_no_bit(device: torch.device) -> None:
    """Rows have parts of wide tiles and of narrow ones, and whichever tile is computed last merges them."""
    case = AttentionCase([*BIG_GROUP, ((), 300, 1)], (4, 1), 64, torch.float32).to(device)
    plan = case.plan()
    made = cut(case, plan, wide=32)
    work = WorkList.of(plan, made.tiling, ALWAYS)
    assert {made.tiling.tile_rows(item.num_entries) for item in work.items} == {16, 32}
    # In the interpreter, programs come one after the other, and there is one for each item.
    assert made.num_programs >= len(work.items)
    out, lse = attend(case, plan)
    for items in (work.items[::-1], work.items[1::2] + work.items[::2]):
        made.load(plan, dataclasses.replace(work, items=items))
        again, again_lse = attend(case, plan)
        assert torch.equal(again, out)
        assert torch.equal(again_lse, lse)
    assert_right(case, out, lse)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_without_sharing_a_row_is_the_same_in_every_batch(dtype: torch.dtype, device: torch.device) -> None:
    lengths = [(1, 1), (1100, 1), (70, 5), (49, 1), (2060, 2), (90, 40), (130, 1)]
    case = AttentionCase([(SYSTEM, max(81, length), query) for length, query in lengths], (4, 1), 64, dtype).to(device)
    together, together_lse = attend(case, case.plan(share=False, padding=0))
    first = 0
    for i, (_, query) in enumerate(lengths):
        rows = slice(first, first + query)
        first += query
        alone = AttentionPlan([query], case.contexts[i : i + 1], case.tables[i : i + 1], share=False)
        out, lse = paged_attention(case.query[rows], case.key_cache, case.value_cache, alone, scale=case.scale)
        assert torch.equal(out, together[rows])
        assert torch.equal(lse, together_lse[rows])
    assert_right(case, together, together_lse)


def test_a_slice_of_a_fused_projection(device: torch.device) -> None:
    case = AttentionCase(SHAPES["shared"], (4, 2), 64, torch.float32).to(device)
    rows = case.query.shape[0]
    fused = torch.full((rows, 8 * 64), math.nan, device=device)
    fused[:, : 4 * 64] = case.query.reshape(rows, -1)
    case.query = fused[:, : 4 * 64].view(rows, 4, 64)
    assert_right(case, *attend(case, case.plan()))
    case.query = case.query.transpose(1, 2).contiguous().transpose(1, 2)
    assert_right(case, *attend(case, case.plan()))


def test_an_fp8_cache_with_scales(device: torch.device) -> None:
    case = AttentionCase(SHAPES["nested, two groups, and prefill"], (4, 2), 64, torch.bfloat16).to(device)
    keys, values = ((cache.float() / 0.25).to(FP8) for cache in (case.key_cache, case.value_cache))
    out, lse = paged_attention(
        case.query, keys, values, case.plan(), scale=case.scale, key_scale=0.25, value_scale=0.25, cost=ALWAYS
    )
    case.key_cache, case.value_cache = keys.float() * 0.25, values.float() * 0.25
    assert_right(case, out, lse)


def test_what_the_kernel_does_not_take_goes_to_torch(device: torch.device) -> None:
    for dim, dtype in [(24, torch.float32), (64, torch.float64)]:
        case = AttentionCase(SHAPES["shared"], (4, 2), dim, dtype).to(device)
        out, _ = attend(case, case.plan())
        torch.testing.assert_close(out.double(), case.expected()[0], rtol=1e-5, atol=1e-5)
    for scale in (-0.2, 0.0):
        case = AttentionCase(SHAPES["shared"], (4, 2), 64, torch.float32).to(device)
        case.scale = scale
        assert_right(case, *attend(case, case.plan()))


def test_a_float8_cache_that_the_kernel_does_not_take_goes_to_torch(device: torch.device) -> None:
    for dim in (24, 64):
        case = AttentionCase(SHAPES["shared"], (4, 2), dim, torch.float32).to(device)
        keys, values = (cache.mul(4).to(FP8) for cache in (case.key_cache, case.value_cache))
        out, _ = paged_attention(
            case.query, keys, values, case.plan(), scale=case.scale, key_scale=0.25, value_scale=0.25
        )
        case.key_cache, case.value_cache = keys.float() / 4, values.float() / 4
        torch.testing.assert_close(out.double(), case.expected()[0], rtol=1e-5, atol=1e-5)


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    case = AttentionCase(SHAPES["shared"], (4, 2), 64, torch.bfloat16).to(device)
    keys, plan = case.key_cache, case.plan()
    for query, cache, words in [
        (case.query[1:], keys, "a plan for"),
        (case.query, keys[:3], "blocks"),
        (case.query[:, :3], keys, "shapes"),
        (case.query, keys.float(), "dtype: torch.bfloat16"),
        (case.query, keys[:, :, :8].contiguous(), "blocks of 8"),
        (case.query, keys.transpose(0, 1).contiguous().transpose(0, 1), "contiguous"),
    ]:
        with pytest.raises(KernelInputError, match=words):
            paged_attention(query, cache, cache, plan, scale=1.0)
