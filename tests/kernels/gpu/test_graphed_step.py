"""Captured steps of a model, replayed under changing plans: what the same operations give in torch, one by one."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from parrot_kernels import AttentionPlan, Backend, KernelInputError
from parrot_kernels.gpu.backend import GpuBackend
from parrot_kernels.gpu.graph_capture import CalledAgain, CudaGraphs, GraphCapture
from parrot_kernels.gpu.graphed_step import GraphedStep
from parrot_kernels.gpu.sharing_cost import SharingCost
from parrot_kernels.gpu.step_plans import StepPlans
from parrot_kernels.torch_backend import TorchBackend
from tests.kernels.llama_step import BLOCK, LlamaStep, Shape

# Eight query heads of one KV head: two rows fill a narrow tile, so that small batches need wide ones.
SHAPE = Shape(hidden=32, intermediate=40, layers=2, heads=8, kv_heads=1, dim=64, vocab=50)
BUCKETS, MAX_TOKENS, MAX_ROWS, NUM_BLOCKS, MAX_CONTEXT = [1, 2, 4, 8], 20, 6, 30, 160
DEFAULT = SharingCost()
ALWAYS = SharingCost(part_s=0.0, item_s=0.0)
"""Share wherever there is something to share."""


class Captured:
    """A model whose step is captured, beside its twin in torch; ``replayed`` says which graphs were."""

    def __init__(self, device: torch.device, cost: SharingCost = DEFAULT) -> None:
        self.device = device
        sizes = {"num_blocks": NUM_BLOCKS, "max_tokens": MAX_TOKENS, "max_rows": MAX_ROWS}
        with torch.device(device):
            self.model = LlamaStep(GpuBackend(device), SHAPE, torch.float32, **sizes)
            self.twin = LlamaStep(TorchBackend(), SHAPE, torch.float32, **sizes)
        for cache, same in zip(self.caches, self.twin.keys + self.twin.values, strict=True):
            same.copy_(cache)
        self.model.slots.fill_(-1)
        graphs: GraphCapture = CudaGraphs(device) if device.type == "cuda" else CalledAgain()
        self.step = GraphedStep(
            self.model.backend, self.model.step, *self.model.inputs(), buckets=BUCKETS,
            plans=StepPlans(max(BUCKETS), MAX_CONTEXT, device, lambda shape: cost), graphs=graphs,
        )  # fmt: skip
        self.replayed: list[tuple[int, bool]] = []
        for key, replay in self.step._replays.items():
            self.step._replays[key] = self._noted(key, replay)

    @property
    def caches(self) -> list[Tensor]:
        return self.model.keys + self.model.values

    def _noted(self, key: tuple[int, bool], replay: Callable[[], None]) -> Callable[[], None]:
        def replay_and_note() -> None:
            self.replayed.append(key)
            replay()

        return replay_and_note

    def check(self, query_lens: list[int], contexts: list[int], tables: list[list[int]], seed: int = 0) -> None:
        """Run a step, padded to the next bucket, and the twin's, which is not."""
        num_tokens, num_rows = self.model.fill(query_lens, contexts, tables, seed), len(query_lens)
        padded = next((bucket for bucket in BUCKETS if bucket >= num_tokens), num_tokens)
        self.model.ids[num_tokens:padded] = self.model.positions[num_tokens:padded] = 0
        self.model.slots[num_tokens:padded] = -1
        self.model.rows[num_rows : min(padded, MAX_ROWS)] = 0
        tables = [table[: -(-context // BLOCK)] for table, context in zip(tables, contexts, strict=True)]
        plan = AttentionPlan(query_lens, contexts, tables, num_rows=padded, device=self.device)
        logits = self.step.run(padded, min(padded, MAX_ROWS), plan)[:num_rows]
        self.twin.fill(query_lens, contexts, tables, seed)
        plan = AttentionPlan(query_lens, contexts, tables, device=self.device)
        expected = self.twin.eager(num_tokens, num_rows, plan)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
        for cache, same in zip(self.caches, self.twin.keys + self.twin.values, strict=True):
            torch.testing.assert_close(cache, same, rtol=1e-4, atol=1e-4)


def table(*blocks: int) -> list[int]:
    return list(blocks)


def test_steps_one_after_the_other(device: torch.device) -> None:
    captured = Captured(device)
    a, b, c = table(3, 9, 1), table(7, 2), table(5, 4)
    for seed, (query_lens, contexts, tables) in enumerate(
        [
            ([1, 1, 1], [33, 15, 20], [a, b, c]),
            ([1, 1, 1], [34, 16, 21], [a, b, c]),
            ([1, 1, 1], [35, 17, 22], [a, b, c]),  # b begins a block
            ([1, 1], [36, 23], [a, c]),
            ([1, 5], [37, 8], [a, table(11)]),  # a prompt between
            ([1], [38], [a]),
            ([2, 7], [40, 15], [a, table(11)]),  # more than the largest bucket
            ([1, 1, 1], [41, 18, 24], [a, b, c]),
            ([8], [30], [table(20, 21)]),
        ]
    ):
        captured.check(query_lens, contexts, tables, seed)
    sizes = [num_tokens for num_tokens, _ in captured.replayed]
    assert sizes == [4, 4, 4, 2, 8, 1, 4, 8]


def test_prefixes_that_are_shared_take_the_wide_tiles(device: torch.device) -> None:
    captured = Captured(device, ALWAYS)
    shared = table(3, 9, 1, 14, 6)
    apart = [table(*(5 * i + j for j in range(5)), 25 + i) for i in range(4)]
    together = [[*shared, 25 + i] for i in range(4)]
    for offset, tables in [(0, together), (1, together), (0, apart), (1, apart), (2, together)]:
        captured.check([1] * 4, [82 + offset, 90 + offset, 85 + offset, 93 + offset], tables)
    assert captured.replayed == [(4, True), (4, True), (4, False), (4, False), (4, True)]


def test_any_number_of_tokens(device: torch.device) -> None:
    captured = Captured(device)
    for num_seqs in (6, 1, 5, 2, 3, 4):
        seqs = range(num_seqs)
        captured.check([1] * num_seqs, [17 + i for i in seqs], [table(2 * i, 2 * i + 1) for i in seqs])
    assert [num_tokens for num_tokens, _ in captured.replayed] == [8, 1, 8, 2, 4, 4]


def test_without_sharing_nothing_is_replayed(device: torch.device) -> None:
    captured = Captured(device)
    captured.model.fill([1], [5], [[0]])
    plan = AttentionPlan([1], [5], [[0]], share=False, device=device)
    logits = captured.step.run(1, 1, plan)
    assert logits.shape == (1, SHAPE.vocab)
    assert captured.replayed == []


def test_what_does_not_fit_is_refused_and_leaves_no_trace(device: torch.device) -> None:
    captured = Captured(device)
    step, a = captured.step, table(1, 2)
    captured.check([1], [16], [a])
    plan = AttentionPlan([1], [16], [a])
    for num_tokens, num_picked in [(0, 0), (MAX_TOKENS + 1, 1), (1, MAX_ROWS + 1), (2, 1), (1, 2)]:
        with pytest.raises(KernelInputError):
            step.run(num_tokens, num_picked, plan)
    with pytest.raises(KernelInputError, match=f"a plan for {NUM_BLOCKS + 1} blocks"):
        step.run(1, 1, AttentionPlan([1], [17], [[1, NUM_BLOCKS]]))  # a block more than the step before
    with pytest.raises(KernelInputError, match="negative"):
        step.run(1, 1, AttentionPlan([1], [17], [[1, -1]]))
    with pytest.raises(KernelInputError, match=f"a plan for {NUM_BLOCKS + 8} blocks"):
        step.run(1, 1, AttentionPlan([1], [5], [[NUM_BLOCKS + 7]]))
    captured.check([1], [17], [a])
    assert step.seconds == {}
    assert step.nbytes > step._plans.nbytes > 0


def test_a_result_stays_until_the_next_run(device: torch.device) -> None:
    captured = Captured(device)
    captured.check([1, 1], [5, 6], [[0], [1]])
    plan = AttentionPlan([1, 1], [5, 6], [[0], [1]], device=device)
    first = captured.step.run(2, 2, plan)
    kept = first.clone()
    captured.model.fill([1, 1], [5, 6], [[0], [1]], seed=9)
    second = captured.step.run(2, 2, plan)
    assert second.data_ptr() == first.data_ptr()
    assert not torch.equal(first, kept)


def small(device: torch.device, dim: int = 64) -> LlamaStep:
    shape = Shape(hidden=32, intermediate=40, layers=1, heads=2, kv_heads=1, dim=dim, vocab=20)
    with torch.device(device):
        return LlamaStep(GpuBackend(device), shape, torch.float32, num_blocks=4, max_tokens=4, max_rows=2)


def _by_token(model: LlamaStep, kernels: Backend, tokens: Sequence[Tensor], *_: object) -> Tensor:
    return kernels.gather(model.embedding, tokens[0])


@pytest.mark.parametrize(
    ("dim", "step", "says"),
    [(24, LlamaStep.step, "the kernel does not take the attention"), (64, _by_token, "no row for each picked row")],
)
def test_what_cannot_be_captured_is_said_once(
    device: torch.device, caplog: pytest.LogCaptureFixture, dim: int, step: Callable[..., Tensor], says: str
) -> None:
    model = small(device, dim)
    model.slots.fill_(-1)
    with caplog.at_level(logging.WARNING):
        captured = model.backend.capture(
            functools.partial(step, model), *model.inputs(), buckets=[4], max_context=64
        )  # fmt: skip
    assert captured is None
    assert [record.name for record in caplog.records] == ["parrot_kernels.gpu.backend"]
    assert says in caplog.text


def test_buckets_decide(device: torch.device) -> None:
    model = small(device)
    model.slots.fill_(-1)
    assert model.backend.capture(model.step, *model.inputs()) is None
    with pytest.raises(KernelInputError, match="buckets of up to 8 tokens, in buffers of 4"):
        model.backend.capture(model.step, *model.inputs(), buckets=[8], max_context=64)
    captured = model.backend.capture(model.step, *model.inputs(), buckets=[1, 4], max_context=64)
    assert isinstance(captured, GraphedStep)
    assert set(captured._replays) == {(4, False), (1, False)}
