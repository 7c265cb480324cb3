"""Every compiled operation against float64 and against its torch twin, for every variant that this CPU runs."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from parrot_kernels import AttentionPlan, Backend, KernelInputError
from parrot_kernels.checks import check_plan
from parrot_kernels.cpu.backend import CpuBackend
from parrot_kernels.cpu.build import HEADERS, SOURCES
from parrot_kernels.cpu.variant import Variant, supported_variants
from parrot_kernels.piecewise_attention import piecewise_attention
from parrot_kernels.torch_backend import TorchBackend
from tests.kernels.attention_case import SHAPES, SYSTEM, AttentionCase

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2}
VARIANTS = [variant.value for variant in supported_variants()]
DTYPES = list(TOLERANCE)
MOSTLY_SHARED = [((("system", 30),), 480 + own, 1) for own in (1, 2, 17, 40, 3, 4, 5, 70, 33, 9)]
"""One prefix is most of the work, so threads share its heads."""
PATHS = st.sampled_from([(), SYSTEM, (*SYSTEM, ("tools", 4))])


@functools.cache
def compiled(variant: str) -> CpuBackend:
    return CpuBackend(Variant(variant))


@pytest.fixture(params=[*VARIANTS, "torch"])
def backend(request: pytest.FixtureRequest) -> Backend:
    return TorchBackend() if request.param == "torch" else compiled(request.param)


def close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    torch.testing.assert_close(actual.double(), expected.double(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "dim"), [((2, 2), 64), ((8, 2), 128), ((8, 1), 64), ((6, 2), 128)])
def test_attention(backend: Backend, shape: str, dtype: torch.dtype, heads: tuple[int, int], dim: int) -> None:
    case = AttentionCase(SHAPES[shape], heads, dim, dtype)
    for softcap, window in [(None, None), (3.0, None), (None, 20)]:
        expected, expected_lse = case.expected(softcap, window)
        for share in (True, False):
            out, lse = backend.paged_attention(
                case.query, case.key_cache, case.value_cache, case.plan(share),
                scale=case.scale, softcap=softcap, window=window,
            )  # fmt: skip
            assert out.dtype == dtype
            close(out, expected, dtype)
            torch.testing.assert_close(lse.double(), expected_lse, rtol=TOLERANCE[dtype] / 3, atol=TOLERANCE[dtype] / 3)


@pytest.mark.parametrize("shape", SHAPES)
def test_piecewise_twin(shape: str) -> None:
    case = AttentionCase(SHAPES[shape], (4, 2), 64, torch.float64)
    out, lse = piecewise_attention(
        case.query, case.key_cache, case.value_cache, case.plan(), scale=case.scale, window=40
    )
    expected, expected_lse = case.expected(window=40)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(lse, expected_lse.float())


@settings(max_examples=15, deadline=None)
@given(
    sequences=st.lists(st.tuples(PATHS, st.integers(1, 190), st.integers(1, 30)), min_size=1, max_size=6),
    seed=st.integers(0, 99),
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_attention_of_any_batch(
    variant: str, sequences: list[tuple[tuple[tuple[str, int], ...], int, int]], seed: int
) -> None:
    sequences = [(path, context, min(query, context)) for path, context, query in sequences]
    case = AttentionCase(sequences, (4, 2), 64, torch.float32, seed=seed)
    out, lse = compiled(variant).paged_attention(
        case.query, case.key_cache, case.value_cache, case.plan(), scale=case.scale
    )
    expected, expected_lse = case.expected()
    close(out, expected, torch.float32)
    close(lse, expected_lse, torch.float32)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sequences", [SHAPES["nested, two groups, and prefill"], MOSTLY_SHARED])
def test_a_row_does_not_depend_on_its_neighbours_or_on_threads(
    variant: str, dtype: torch.dtype, sequences: list[tuple[tuple[tuple[str, int], ...], int, int]]
) -> None:
    case = AttentionCase(sequences, (8, 2), 64, dtype)
    kernel = functools.partial(
        compiled(variant).paged_attention, key_cache=case.key_cache, value_cache=case.value_cache
    )
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        together, _ = kernel(case.query, plan=case.plan(share=False), scale=case.scale)
        shared, shared_lse = kernel(case.query, plan=case.plan(), scale=case.scale)
        torch.set_num_threads(3)
        again, again_lse = kernel(case.query, plan=case.plan(), scale=case.scale)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(shared, again)
    assert torch.equal(shared_lse, again_lse)
    row = 0
    for table, context, length in zip(case.tables, case.contexts, case.query_lens, strict=True):
        rows = slice(row, row + length)
        alone, _ = kernel(case.query[rows], plan=AttentionPlan([length], [context], [table]), scale=case.scale)
        assert torch.equal(alone, together[rows])
        row += length


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "dim"), [((1, 1), 64), ((8, 2), 128)])
def test_a_row_does_not_depend_on_the_chunk_that_it_is_in(
    variant: str, dtype: torch.dtype, heads: tuple[int, int], dim: int
) -> None:
    context, length = 150, 70
    case = AttentionCase([((), context, length)], heads, dim, dtype)
    kernel = functools.partial(
        compiled(variant).paged_attention, key_cache=case.key_cache, value_cache=case.value_cache, scale=case.scale
    )
    for window in (None, 50):
        whole, _ = kernel(case.query, plan=case.plan(share=False), window=window)
        for first, size in [(0, 1), (3, 2), (20, 3), (69, 1), (30, 20)]:
            rows, end = slice(first, first + size), context - length + first + size
            plan = AttentionPlan([size], [end], case.tables, share=False)
            part, _ = kernel(case.query[rows], plan=plan, window=window)
            assert torch.equal(part, whole[rows])


def test_long_contexts_are_split_and_merged() -> None:
    case = AttentionCase(
        [((), 2100, 1), ((("long", 80),), 1290, 2), ((("long", 80),), 1400, 1)], (4, 2), 64, torch.float32
    )
    assert max(piece.num_keys for piece in case.plan().pieces) == 1024
    for variant in VARIANTS:
        out, _ = compiled(variant).paged_attention(
            case.query, case.key_cache, case.value_cache, case.plan(), scale=case.scale
        )
        close(out, case.expected()[0], torch.float32)


@pytest.mark.parametrize("variant", VARIANTS)
def test_stale_keys_behind_the_context_do_not_matter(variant: str) -> None:
    case = AttentionCase([((), 19, 3)], (2, 1), 64, torch.bfloat16)
    expected, _ = case.expected()
    for cache in (case.key_cache, case.value_cache):
        cache[case.tables[0][1], :, 3:] = float("nan")
    out, _ = compiled(variant).paged_attention(
        case.query, case.key_cache, case.value_cache, case.plan(), scale=case.scale
    )
    close(out, expected, torch.bfloat16)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16])
@pytest.mark.parametrize("dim", [24, 80])
def test_what_is_not_compiled_goes_to_torch(backend: Backend, dtype: torch.dtype, dim: int) -> None:
    case = AttentionCase(SHAPES["shared"], (4, 2), dim, dtype)
    out, _ = backend.paged_attention(case.query, case.key_cache, case.value_cache, case.plan(), scale=case.scale)
    tolerance = TOLERANCE.get(dtype, 4e-3)
    torch.testing.assert_close(out.double(), case.expected()[0], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 64), (5, 512), (3, 33), (4, 3, 7), (2, 3, 4, 64), (0, 16)])
def test_rms_norm(backend: Backend, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, residual = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    weight = torch.randn(shape[-1]).to(dtype)

    def norm(value: Tensor) -> Tensor:
        wide = value.double()
        return wide / torch.sqrt(wide.square().mean(-1, keepdim=True) + 1e-5) * weight.double()

    close(backend.rms_norm(x, weight, 1e-5), norm(x), dtype)
    strided = torch.cat([x, x], -1)[..., : shape[-1]]
    close(backend.rms_norm(strided, weight, 1e-5), norm(x), dtype)
    normed, total = backend.add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(total, x + residual)
    close(normed, norm(total), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("dim", "half"), [(64, 32), (128, 64), (24, 5), (80, 16), (16, 0)])
def test_rope_and_store(backend: Backend, dtype: torch.dtype, dim: int, half: int) -> None:
    torch.manual_seed(0)
    tokens, heads, kv_heads, value_dim = 5, 4, 2, 24
    fused = torch.randn(tokens, heads * dim + kv_heads * (dim + value_dim)).to(dtype)
    query, key, value = fused.split([heads * dim, kv_heads * dim, kv_heads * value_dim], -1)
    query, key, value = (
        query.view(tokens, heads, dim),
        key.view(tokens, kv_heads, dim),
        value.view(tokens, kv_heads, value_dim),
    )
    angle = torch.randn(tokens, half)
    slots = torch.tensor([47, 0, -1, 16, 31])
    key_cache, value_cache = (
        torch.zeros(3, kv_heads, 16, dim).to(dtype),
        torch.zeros(3, kv_heads, 16, value_dim).to(dtype),
    )

    def rotated(x: Tensor) -> Tensor:
        turned, rest = x.double()[..., : 2 * half], x.double()[..., 2 * half :]
        first, second = turned.chunk(2, -1)
        cos, sin = (torch.cat([f(angle.double())] * 2, -1)[:, None] for f in (torch.cos, torch.sin))
        return torch.cat([turned * cos + torch.cat([-second, first], -1) * sin, rest], -1)

    out = backend.rope_and_store(query, key, value, angle.cos(), angle.sin(), slots, key_cache, value_cache)
    close(out, rotated(query), dtype)
    expected_keys, expected_values = torch.zeros_like(key_cache).double(), torch.zeros_like(value_cache)
    for token, slot in enumerate(slots.tolist()):
        if slot >= 0:
            expected_keys[slot // 16, :, slot % 16] = rotated(key)[token]
            expected_values[slot // 16, :, slot % 16] = value[token]
    close(key_cache, expected_keys, dtype)
    assert torch.equal(value_cache, expected_values)
    with pytest.raises(KernelInputError, match="outside the cache"):
        backend.rope_and_store(query, key, value, angle.cos(), angle.sin(), slots + 1, key_cache, value_cache)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 64), (3, 2, 34), (40, 2816), (0, 8)])
def test_silu_mul(backend: Backend, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    gate_up = (torch.randn(shape) * 20).to(dtype)
    gate, up = gate_up.double().chunk(2, -1)
    close(backend.silu_mul(gate_up), gate * torch.sigmoid(gate) * up, dtype)
    transposed = gate_up.transpose(0, -1).contiguous().transpose(0, -1)
    close(backend.silu_mul(transposed), gate * torch.sigmoid(gate) * up, dtype)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16])
@pytest.mark.parametrize("rows", [1, 0, 40])
def test_gather(backend: Backend, dtype: torch.dtype, rows: int) -> None:
    table, index = torch.randn(30, 48).to(dtype), torch.randint(0, 30, (rows,))
    out = backend.gather(table, index)
    assert torch.equal(out, table[index])
    assert out.is_contiguous()


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_gives_float32_on_demand(backend: Backend, dtype: torch.dtype) -> None:
    weight, x = torch.randn(48, 32).to(dtype) / 6, torch.randn(3, 32).to(dtype)
    packed = backend.pack_linear(weight)
    assert backend.linear(x, packed).dtype == dtype
    out = backend.linear(x, packed, torch.float32)
    assert out.dtype == torch.float32
    close(out, x.double() @ weight.double().T, dtype)
    assert weight.nbytes <= packed.nbytes < 2 * weight.nbytes  # panels are padded


@pytest.mark.parametrize("shape", ["block borders", "shared"])
@pytest.mark.parametrize("share", [True, False])
def test_padding_rows_see_nothing(backend: Backend, shape: str, share: bool) -> None:
    case = AttentionCase(SHAPES[shape], (8, 2), 64, torch.float32)
    tokens = len(case.query)
    plan = AttentionPlan(case.query_lens, case.contexts, case.tables, num_rows=tokens + 2, share=share)
    query = torch.cat([case.query, torch.full((2, 8, 64), 50.0)])
    out, lse = backend.paged_attention(query, case.key_cache, case.value_cache, plan, scale=case.scale)
    close(out[:tokens], case.expected()[0], torch.float32)
    assert torch.equal(out[tokens:], torch.zeros(2, 8, 64))
    assert bool(torch.isneginf(lse[tokens:]).all())


@pytest.mark.parametrize("variant", VARIANTS)
def test_special_values(variant: str) -> None:
    gate = torch.tensor([float("nan"), float("inf"), -float("inf"), 200.0, -200.0, 0.0])
    out = compiled(variant).silu_mul(torch.cat([gate, torch.ones(6)]))
    assert out[0].isnan()
    assert out[1] == float("inf")
    assert out[3:].tolist() == pytest.approx([200.0, 0.0, 0.0], abs=1e-30)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_does_not_fit_is_refused(variant: str) -> None:
    kernels = compiled(variant)
    case = AttentionCase(SHAPES["shared"], (4, 2), 64, torch.float32)
    plan, scale = case.plan(), case.scale
    for query, cache in [
        (case.query[1:], case.key_cache),
        (case.query[:, :3], case.key_cache),
        (case.query.bfloat16(), case.key_cache),
        (case.query, case.key_cache[: plan.num_blocks - 1]),
        (case.query, case.key_cache.transpose(1, 2).contiguous().transpose(1, 2)),
        (case.query, case.key_cache[:, :, :8]),
    ]:
        with pytest.raises(KernelInputError):
            kernels.paged_attention(query, cache, cache, plan, scale=scale)
    with pytest.raises(KernelInputError):
        kernels.rms_norm(case.query, torch.ones(63), 1e-5)
    with pytest.raises(KernelInputError):
        kernels.add_rms_norm(case.query, case.query[1:], torch.ones(64), 1e-5)
    with pytest.raises(KernelInputError):
        kernels.silu_mul(torch.ones(2, 3))


@pytest.mark.parametrize(
    ("query_lens", "contexts", "tables"),
    [([1], [17], [[0]]), ([0], [1], [[0]]), ([2], [1], [[0]]), ([1], [1], [[-1]]), ([1, 1], [1], [[0]])],
)
def test_plans_that_make_no_sense(query_lens: list[int], contexts: list[int], tables: list[list[int]]) -> None:
    with pytest.raises(KernelInputError):
        check_plan(AttentionPlan(query_lens, contexts, tables), 1, 1)  # as every backend does before it computes


def test_a_plan_covers_every_key_of_every_row_once() -> None:
    case = AttentionCase(SHAPES["nested, two groups, and prefill"], (1, 1), 64, torch.float32)
    plan = case.plan()
    sequence_of = [i for i, length in enumerate(case.query_lens) for _ in range(length)]
    covered: dict[int, list[int]] = {row: [] for row in range(plan.num_tokens)}
    for piece in plan.pieces:
        for row in piece.rows:
            table = case.tables[sequence_of[row]]
            start = piece.first_key // 16
            assert list(piece.blocks) == table[start : start + len(piece.blocks)]
            covered[row] += range(piece.first_key, piece.first_key + piece.num_keys)
    for row, keys in covered.items():
        assert sorted(keys) == list(range(case.contexts[sequence_of[row]]))
    shared = [piece for piece in plan.pieces if len({sequence_of[row] for row in piece.rows}) > 1]
    assert sorted((piece.first_key, piece.num_keys) for piece in shared) == [(0, 80), (0, 96), (80, 64)]


def test_every_source_is_compiled_or_part_of_the_key() -> None:
    folder = Path(CpuBackend.__init__.__code__.co_filename).parent
    assert {path.name for path in folder.glob("*.cpp")} == set(SOURCES)
    assert {path.name for path in folder.glob("*.h")} == set(HEADERS)
