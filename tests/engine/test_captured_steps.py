"""The engine on captured steps: the tokens of transformers, whatever is padded, replayed, or run eagerly between.

Graphs over Triton kernels, interpreted where there is no GPU; and over the operations of a CPU, for all families, where
a replay calls the step again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from parrot_kernels import AttentionPlan, Step, backend_for
from parrot_kernels.cpu.backend import CpuBackend
from parrot_kernels.gpu.graph_capture import CalledAgain
from parrot_kernels.gpu.graphed_step import GraphedStep
from parrot_kernels.gpu.step_plans import StepPlans
from parrot_mq.errors import ConfigError
from parrot_mq.messages import SamplingParams
from parrot_workers.engine.engine import Engine
from parrot_workers.engine.engine_settings import EngineSettings
from parrot_workers.engine.model_runner import ModelRunner
from parrot_workers.engine.models import llama
from parrot_workers.engine.models.load import load_model
from parrot_workers.engine.paged_cache import PagedCache
from parrot_workers.engine.step_batch import Span, StepBuffers, buckets_up_to
from tests.engine.families import FAST, VOCAB_SIZE
from tests.engine.test_engine import MakeEngine, Reference, add, drain, expected, make_prompts, tokens

GREEDY = SamplingParams(max_tokens=20, ignore_eos=True)
BUCKETS = (1, 2, 4, 8, 16)
CPU = torch.device("cpu")


class CopiedPlans(StepPlans):
    """For operations that read the plan they are given: the stand-in for a run's plan becomes it."""

    nbytes = 0

    def __init__(self) -> None:
        self._stand_ins: dict[int, AttentionPlan] = {}

    def is_wide(self, num_rows: int) -> bool:
        return False

    def stand_in(self, num_rows: int, *, wide: bool) -> AttentionPlan:
        return self._stand_ins.setdefault(num_rows, AttentionPlan([], [], [], num_rows=num_rows))

    def update(self, plan: AttentionPlan) -> bool:
        stand_in = vars(self._stand_ins[plan.num_tokens])
        stand_in.clear()
        stand_in.update(vars(plan))
        return False


class GraphedCpu(CpuBackend):
    """A CPU's operations, captured as a GPU's are; ``sizes`` are the tokens of what was replayed."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def capture(
        self,
        step: Step,
        tokens: Sequence[Tensor],
        picked: Sequence[Tensor],
        *,
        buckets: Sequence[int] = (),
        max_context: int = 0,
    ) -> GraphedStep:
        captured = GraphedStep(
            self, step, tokens, picked, buckets=buckets, plans=CopiedPlans(), graphs=CalledAgain()
        )  # fmt: skip
        for (size, wide), replay in captured._replays.items():
            captured._replays[size, wide] = self._noted(size, replay)
        return captured

    def _noted(self, size: int, replay: Callable[[], None]) -> Callable[[], None]:
        def replay_and_note() -> None:
            self.sizes.append(size)
            replay()

        return replay_and_note


@pytest.fixture
def graphed(monkeypatch: pytest.MonkeyPatch) -> GraphedCpu:
    """Models of the fast path compute with this backend."""
    backend = GraphedCpu()
    monkeypatch.setattr(llama, "backend_for", lambda device: backend)
    return backend


@pytest.mark.parametrize("kind", FAST)
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"num_blocks": 400}, id="roomy"),
        pytest.param({"num_blocks": 12, "max_num_batched_tokens": 13}, id="tight"),
        pytest.param({"num_blocks": 400, "speculate": True, "calibrate": True}, id="drafts"),
    ],
)
def test_greedy_equals_transformers(
    make_engine: MakeEngine, reference: Reference, graphed: GraphedCpu, kind: str, settings: dict[str, Any]
) -> None:
    prompts = make_prompts(7, shared=35, seed=5, longest=50)
    engine = make_engine(kind, buckets=BUCKETS, **settings)
    assert graphed.sizes, "the probe was not captured"
    graphed.sizes.clear()
    for output, prompt in zip(engine.generate(prompts, GREEDY), prompts, strict=True):
        assert list(output.token_ids) == expected(reference, kind, prompt)
    assert len(graphed.sizes) > 10
    assert set(graphed.sizes) <= set(BUCKETS)
    engine.close()


@pytest.mark.parametrize("run_ahead", [False, True])
def test_sequences_that_come_and_go(
    make_engine: MakeEngine, reference: Reference, graphed: GraphedCpu, run_ahead: bool
) -> None:
    prompts = make_prompts(8, shared=35, seed=5, longest=50)
    engine = make_engine("llama", max_num_batched_tokens=40, buckets=BUCKETS, run_ahead=run_ahead)
    graphed.sizes.clear()
    outputs: dict[str, list[Any]] = {}
    for index, prompt in enumerate(prompts):
        add(engine, str(index), prompt)
        for _ in range(3):
            for output in engine.step():
                outputs.setdefault(output.id, []).append(output)
    for name, rest in drain(engine).items():
        outputs.setdefault(name, []).extend(rest)
    for index, prompt in enumerate(prompts):
        assert tokens(outputs[str(index)]) == expected(reference, "llama", prompt)
    assert len(set(graphed.sizes)) >= 4
    assert (engine.stats().num_ahead_steps > 0) == run_ahead


def make_runner(folder: Path, buckets: Sequence[int], **settings: Any) -> ModelRunner:
    model = load_model(str(folder), device=CPU)
    cache = PagedCache(model.layers, 40, model.dtype, CPU)
    for tensor in (*cache.keys.values(), *cache.values.values()):
        tensor.fill_(7.0)
    return ModelRunner(model, cache, max_num_tokens=64, buckets=buckets, **settings)


def test_what_is_captured_is_stored_nowhere_and_padding_neither(
    model_folder: Callable[[str], Path], graphed: GraphedCpu
) -> None:
    runner = make_runner(model_folder("llama_64"), [4, 8])
    caches = [*runner.cache.keys.values(), *runner.cache.values.values()]
    assert all(bool((cache == 7.0).all()) for cache in caches)
    runner.run([Span([5], 0, 1, [3]), Span([6], 16, 1, [9, 2])])
    assert graphed.sizes == [4]
    for cache in caches:
        written = (cache != 7.0).any(-1).any(1).nonzero().tolist()
        assert written == [[2, 0], [3, 0]]


def test_rows_of_the_step_before_are_not_picked_again(model_folder: Callable[[str], Path], graphed: GraphedCpu) -> None:
    runner = make_runner(model_folder("llama_64"), [8])
    plain = make_runner(model_folder("llama_64"), [])
    for spans in ([Span(range(64), 0, 3, range(4))], [Span(range(8), 0, 1, [5])]):
        logits = runner.run(spans)
        assert logits.shape == (spans[0].num_rows, VOCAB_SIZE)
        torch.testing.assert_close(logits, plain.run(spans), rtol=1e-5, atol=1e-5)
    assert graphed.sizes == [8]


def test_a_model_that_does_not_compute_what_it_should_is_found_out_in_captured_steps(
    make_engine: MakeEngine, graphed: GraphedCpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CopiedPlans, "update", lambda self, plan: False)  # every replay under the plan of the capture
    with pytest.raises(ConfigError, match="does not reproduce this model's logits"):
        make_engine("llama", buckets=BUCKETS)


@pytest.mark.parametrize(
    ("most", "buckets"),
    [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (8, [1, 2, 4, 8]), (9, [1, 2, 4, 8, 9]), (32, [1, 2, 4, 8, 16, 24, 32])],
)
def test_buckets_up_to(most: int, buckets: list[int]) -> None:
    assert buckets_up_to(most) == buckets


def test_who_captures_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert EngineSettings("model").step_buckets == ()
    assert EngineSettings("model", buckets=(4,)).step_buckets == (4,)
    with pytest.raises(ConfigError, match="numbers of tokens"):
        EngineSettings("model", buckets=(4, 0))
    gpu = {"device": "cuda:1", "max_num_seqs": 16}
    assert EngineSettings("model", **gpu, speculate=False).step_buckets == (1, 2, 4, 8, 16)  # type: ignore[arg-type]
    assert max(EngineSettings("model", **gpu).step_buckets) == 144  # type: ignore[arg-type]
    assert EngineSettings("model", **gpu, buckets=()).step_buckets == ()  # type: ignore[arg-type]
    assert EngineSettings("model", **gpu, tensor_parallel_size=2).step_buckets == ()  # type: ignore[arg-type]
    large = EngineSettings("model", device="cuda", max_num_seqs=300)
    assert max(large.step_buckets) == 256


@pytest.fixture
def triton(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """The device; Triton's kernels compute on it."""
    monkeypatch.setenv("PARROT_MQ_KERNELS", "triton")
    assert backend_for(device).name == "triton"
    return device


@pytest.mark.parametrize("run_ahead", [False, True])
def test_the_engine_on_triton_kernels(
    model_folder: Callable[[str], Path], reference: Reference, triton: torch.device, run_ahead: bool
) -> None:
    prompts = make_prompts(3, shared=20, seed=3, longest=12)
    engine = Engine(
        model_folder("llama_64"), device=str(triton), buckets=(1, 2, 4), max_num_seqs=4, num_blocks=40,
        calibrate=False, speculate=False, run_ahead=run_ahead,
    )  # fmt: skip
    assert engine._runner is not None
    assert isinstance(engine._runner._captured, GraphedStep)
    few = SamplingParams(max_tokens=6, ignore_eos=True)
    for output, prompt in zip(engine.generate(prompts, few), prompts, strict=True):
        assert list(output.token_ids) == expected(reference, "llama_64", prompt)[:6]
    assert engine.stats().num_ahead_steps == (5 if run_ahead else 0)
    assert engine.memory().workspace > engine._runner._captured.nbytes > 0
    engine.close()


def test_draws_on_triton_kernels(
    make_engine: MakeEngine, triton: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = make_prompts(3, shared=20, seed=3, longest=12)
    sampling = [SamplingParams(max_tokens=6, temperature=t, top_k=40, top_p=0.9, seed=5) for t in (0.0, 0.8, 1.5)]
    engine = make_engine("llama_64", device=str(triton), buckets=(1, 2, 4), run_ahead=True)
    drawn = [output.token_ids for output in engine.generate(prompts, sampling)]
    assert engine.stats().num_ahead_steps > 0
    monkeypatch.setenv("PARROT_MQ_KERNELS", "torch")
    plain = make_engine("llama_64").generate(prompts, sampling)
    assert drawn == [output.token_ids for output in plain]


def test_a_step_is_prepared_while_another_is_on_its_way(device: torch.device) -> None:
    """On a GPU: the host's copy of a batch is written again only once the device has it."""
    buffers = StepBuffers(64, device)
    seen = []
    for step in range(8):
        if device.type == "cuda":
            torch.cuda._sleep(20_000_000)
        batch = buffers.fill([Span([step + 1] * 50, 0, 1, range(4))])
        seen.append(batch.ids.clone())
    assert [ids.unique().tolist() for ids in seen] == [[step + 1] for step in range(8)]
