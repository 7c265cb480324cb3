"""A captured step gives what the same operations give one by one, to the last bit, for any batch it has room for."""

from __future__ import annotations

import functools
import gc
import logging
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from parrot_kernels import AttentionPlan, Backend, CapturedStep, KernelCaptureError, KernelInputError
from parrot_kernels.cpu.arena import Arena
from parrot_kernels.cpu.backend import CpuBackend
from parrot_kernels.cpu.program import Rows
from parrot_kernels.cpu.recorder import Recorder
from parrot_kernels.cpu.variant import Variant, supported_variants
from parrot_kernels.torch_backend import TorchBackend
from tests.kernels.llama_step import LlamaStep, Shape

SHAPES = {
    "plain": Shape(64, 96, 3, 4, 2, 64, 100),
    "qk norm, window": Shape(96, 40, 2, 3, 1, 128, 33, qk_norm=True, window=20),
    "softcap, odd": Shape(50, 27, 2, 8, 8, 64, 17, softcap=5.0),
    "tied, odd": Shape(51, 30, 2, 4, 2, 64, 45, tied=True),
}
VARIANTS = [variant.value for variant in supported_variants()]
SEQUENCES = st.lists(st.tuples(st.integers(1, 20), st.integers(0, 100)), min_size=1, max_size=5)
NUM_BLOCKS, MAX_TOKENS, MAX_ROWS = 40, 100, 7


@functools.cache
def captured(shape: str, dtype: torch.dtype, variant: str = VARIANTS[0]) -> tuple[LlamaStep, CapturedStep]:
    model = LlamaStep(
        CpuBackend(Variant(variant)), SHAPES[shape], dtype,
        num_blocks=NUM_BLOCKS, max_tokens=MAX_TOKENS, max_rows=MAX_ROWS,
    )  # fmt: skip
    program = model.backend.capture(model.step, *model.inputs())
    assert program is not None
    return model, program


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def batch(sequences: list[tuple[int, int]], shared: bool) -> tuple[list[int], list[int], list[list[int]]]:
    """Return (query_lens, contexts, tables) of sequences (new tokens, tokens before); 64 tokens may be ``shared``."""
    contexts = [new + before for new, before in sequences]
    tables = [list(range(8 * i, 8 * i + 8)) for i in range(len(sequences))]
    if shared:
        tables = [
            tables[0][:4] + table[4:] if before >= 64 else table
            for table, (_, before) in zip(tables, sequences, strict=True)
        ]
    return [new for new, _ in sequences], contexts, tables


def check(model: LlamaStep, program: CapturedStep, query_lens: list[int], contexts: list[int], tables: list[list[int]],
          seed: int = 0) -> None:  # fmt: skip
    num_tokens = model.fill(query_lens, contexts, tables, seed)
    plan = AttentionPlan(query_lens, contexts, tables)
    before = [cache.clone() for cache in model.keys + model.values]
    expected = model.eager(num_tokens, len(query_lens), plan)
    stored = [cache.clone() for cache in model.keys + model.values]
    for cache, old in zip(model.keys + model.values, before, strict=True):
        cache.copy_(old)
    actual = program.run(num_tokens, len(query_lens), plan)
    assert actual.dtype == torch.float32
    assert torch.equal(actual, expected)
    assert all(map(torch.equal, stored, model.keys + model.values))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("threads")
def test_any_number_of_rows(shape: str, dtype: torch.dtype) -> None:
    model, program = captured(shape, dtype)
    for sequences in ([(1, 0)], [(1, 90)] * 5, [(20, 0), (1, 60), (3, 4)], [(20, 100)] * 5, [(1, 70), (2, 126)]):
        check(model, program, *batch(sequences, shared=False))
        check(model, program, *batch(sequences, shared=True))


@settings(max_examples=20, deadline=None)
@given(steps=st.lists(st.tuples(SEQUENCES, st.booleans(), st.integers(0, 9)), min_size=1, max_size=3))
@pytest.mark.parametrize("variant", VARIANTS)
def test_any_steps_one_after_the_other(variant: str, steps: list[tuple[list[tuple[int, int]], bool, int]]) -> None:
    model, program = captured("plain", torch.float32, variant)
    for sequences, shared, seed in steps:
        check(model, program, *batch(sequences, shared), seed=seed)


@pytest.mark.parametrize("shape", ["plain", "tied, odd"])
def test_it_computes_what_torch_computes(shape: str) -> None:
    model, program = captured(shape, torch.float32)
    query_lens, contexts, tables = batch([(20, 0), (1, 60), (3, 4)], shared=False)
    num_tokens = model.fill(query_lens, contexts, tables)
    plan = AttentionPlan(query_lens, contexts, tables)
    actual = program.run(num_tokens, 3, plan).clone()
    torch_model = LlamaStep(
        TorchBackend(), SHAPES[shape], torch.float32, num_blocks=NUM_BLOCKS, max_tokens=MAX_TOKENS, max_rows=MAX_ROWS
    )
    for ours, theirs in zip(model.keys + model.values, torch_model.keys + torch_model.values, strict=True):
        theirs.copy_(ours)
    torch_model.fill(query_lens, contexts, tables)
    torch.testing.assert_close(actual, torch_model.eager(num_tokens, 3, plan), rtol=1e-4, atol=1e-4)
    assert torch_model.backend.capture(torch_model.step, *torch_model.inputs()) is None


def test_time_by_kind() -> None:
    model, program = captured("plain", torch.float32)
    query_lens, contexts, tables = batch([(1, 30)], shared=False)
    before = program.seconds
    program.run(model.fill(query_lens, contexts, tables), 1, AttentionPlan(query_lens, contexts, tables))
    after = program.seconds
    assert set(after) == {"norm", "rope", "attention", "silu_mul", "linear", "gather"}
    assert all(after[kind] > before[kind] for kind in after)


@pytest.mark.parametrize("shape", ["plain", "tied, odd"])
def test_what_does_not_fit_is_refused_and_nothing_is_computed(shape: str) -> None:
    model, program = captured(shape, torch.float32)
    plan = AttentionPlan([1], [5], [[0]])
    num_tokens = model.fill([1], [5], [[0]])
    expected = program.run(num_tokens, 1, plan).clone()
    for tokens, rows in [(0, 0), (MAX_TOKENS + 1, 1), (1, MAX_ROWS + 1), (2, 1)]:
        with pytest.raises(KernelInputError):
            program.run(tokens, rows, plan)
    with pytest.raises(KernelInputError, match="blocks"):
        program.run(1, 1, AttentionPlan([1], [5], [[NUM_BLOCKS]]))
    stored = [cache.clone() for cache in model.keys]
    for name, value in [("slots", 16 * NUM_BLOCKS), ("ids", model.shape.vocab), ("rows", -1), ("rows", MAX_TOKENS)]:
        kept = getattr(model, name)[0].clone()
        getattr(model, name)[0] = value
        with pytest.raises(KernelInputError, match="outside"):
            program.run(1, 1, plan)
        getattr(model, name)[0] = kept
    assert all(map(torch.equal, stored, model.keys))
    assert torch.equal(program.run(1, 1, plan), expected)


def _constant(kernels: Backend, model: LlamaStep) -> Tensor:
    return kernels.rms_norm(model.norm.expand(MAX_TOKENS, -1), model.norm, 1e-5)


def _mixed(kernels: Backend, model: LlamaStep) -> Tensor:
    hidden = kernels.gather(model.embedding, model.ids)
    return kernels.add_rms_norm(hidden[:MAX_ROWS], kernels.gather(hidden, model.rows), model.norm, 1e-5)[0]


def _another_plan(kernels: Backend, model: LlamaStep) -> Tensor:
    return model.step(kernels, *model.inputs(), AttentionPlan([], [], [], num_rows=MAX_TOKENS))


@pytest.mark.parametrize(
    ("step", "says"),
    [
        (lambda kernels, model: kernels.gather(model.embedding, model.ids) * 2, "aten.mul"),
        (lambda kernels, model: kernels.gather(model.embedding, model.ids).float(), r"aten\.(to|_to_copy)"),
        (lambda kernels, model: kernels.gather(model.embedding, model.ids).mul_(2), "aten.mul_"),
        (lambda kernels, model: kernels.gather(model.embedding, model.ids).T.reshape(MAX_TOKENS, -1), "aten"),
        (lambda kernels, model: kernels.gather(model.embedding, model.ids.flip(0)), "aten.flip"),
        (lambda kernels, model: kernels.linear(kernels.gather(model.embedding, model.ids)[1:], model.head), "no row"),
        (lambda kernels, model: kernels.gather(model.embedding, model.ids)[:, 1:], "not the result"),
        (lambda kernels, model: model.norm, "not the result"),
        (_constant, "no row"),
        (_mixed, "no row"),
        (_another_plan, "another attention plan"),
    ],
)
def test_what_would_be_left_out_is_refused(
    step: Callable[[Backend, LlamaStep], Tensor], says: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, _ = captured("plain", torch.bfloat16)
    assert isinstance(model.backend, CpuBackend)

    def captured_step(kernels: Backend, *_: object) -> Tensor:
        return step(kernels, model)

    with pytest.raises(KernelCaptureError, match=says):
        Recorder(model.backend, *model.inputs()).record(captured_step)
    with caplog.at_level(logging.WARNING):
        assert model.backend.capture(captured_step, *model.inputs()) is None
    assert [record.name for record in caplog.records] == ["parrot_kernels.cpu.backend"]
    assert "runs eagerly" in caplog.text


def test_a_dtype_that_is_not_compiled_runs_eagerly() -> None:
    model = LlamaStep(
        CpuBackend(), SHAPES["plain"], torch.float16, num_blocks=4, max_tokens=MAX_TOKENS, max_rows=MAX_ROWS
    )
    assert model.backend.capture(model.step, *model.inputs()) is None


def test_a_program_keeps_what_it_points_to() -> None:
    model = LlamaStep(
        CpuBackend(), SHAPES["plain"], torch.float32, num_blocks=NUM_BLOCKS, max_tokens=MAX_TOKENS, max_rows=MAX_ROWS
    )
    program = model.backend.capture(model.step, *model.inputs())
    assert program is not None
    plan = AttentionPlan([1], [5], [[0]])
    expected = program.run(model.fill([1], [5], [[0]]), 1, plan).clone()
    del model
    gc.collect()
    junk = [torch.full((100, 100), float("nan")) for _ in range(200)]
    assert torch.equal(program.run(1, 1, plan), expected)
    assert len(junk) == 200


@settings(deadline=None)
@given(uses=st.lists(st.tuples(st.integers(1, 300), st.integers(0, 4)), min_size=1, max_size=30))
def test_buffers_in_use_at_once_do_not_overlap(uses: list[tuple[int, int]]) -> None:
    arena = Arena()
    buffers = []
    for phase, (size, lasts) in enumerate(uses):
        buffer = arena.find(arena.new([1, size], torch.uint8, Rows.TOKENS).data_ptr())
        assert buffer is not None
        buffer.touch(phase)
        buffer.touch(phase + lasts)
        buffers.append(buffer)
    memory = arena.place()
    for i, one in enumerate(buffers):
        assert one.offset % 64 == 0
        assert one.offset + one.tensor.nbytes <= memory.nbytes
        for other in buffers[:i]:
            apart = one.offset + one.tensor.nbytes <= other.offset or other.offset + other.tensor.nbytes <= one.offset
            assert apart or one.last < other.first or other.last < one.first
