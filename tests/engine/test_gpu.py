"""The engine on a GPU: the same outputs however far the host runs ahead, and no wait while a step is launched."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch

from parrot_mq.messages import SamplingParams
from parrot_workers.engine.engine import Engine
from parrot_workers.engine.host_copy import HostCopy, to_device
from parrot_workers.engine.step_pipeline import StepInFlight
from tests.engine.test_engine import MakeEngine, Reference, add, drain, expected, make_prompts, tokens

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
FREE = SamplingParams(max_tokens=60, ignore_eos=True)
DRAWN = dataclasses.replace(FREE, temperature=0.8, top_k=50, top_p=0.95, seed=5)
SLEEP_CYCLES = 4_000_000_000
"""Two seconds or more, in which a step is launched that takes milliseconds."""


@pytest.fixture
def engine(make_engine: MakeEngine) -> Iterator[Engine]:
    """One that decodes greedy and random rows, with a step in flight, whose every kernel has run."""
    engine = make_engine("llama_64", device="cuda")
    assert engine.settings.runs_ahead
    for index, prompt in enumerate(make_prompts(3, shared=20, seed=3)):
        add(engine, str(index), prompt, [FREE, DRAWN][index % 2])
    for _ in range(20):
        engine.step()
    assert engine._steps.in_flight is not None
    torch.cuda.synchronize()
    yield engine
    torch.cuda.set_sync_debug_mode("default")
    engine.close()


def take_in(engine: Engine, step: StepInFlight | None) -> None:
    assert step is not None
    engine._take_in(step, [])
    engine._steps.publish()


def test_tokens_are_those_of_transformers(make_engine: MakeEngine, reference: Reference) -> None:
    prompts = make_prompts(5, shared=35, seed=5)
    engine = make_engine("llama_64", device="cuda", max_num_batched_tokens=64)
    for index, prompt in enumerate(prompts):
        add(engine, str(index), prompt)
    outputs = drain(engine)
    assert engine.stats().num_ahead_steps > 0
    for index, prompt in enumerate(prompts):
        assert tokens(outputs[str(index)]) == expected(reference, "llama_64", prompt)


@pytest.mark.parametrize("sampling", [FREE, DRAWN, dataclasses.replace(DRAWN, stop_token_ids=tuple(range(3, 384, 9)))])
def test_outputs_are_those_of_steps_one_by_one(make_engine: MakeEngine, sampling: SamplingParams) -> None:
    prompts = make_prompts(5, shared=35, seed=5)
    ahead, plain = (make_engine("llama_64", device="cuda", run_ahead=run_ahead) for run_ahead in (True, False))
    assert [o.token_ids for o in ahead.generate(prompts, sampling)] == [
        o.token_ids for o in plain.generate(prompts, sampling)
    ]
    assert ahead.stats().num_ahead_steps > plain.stats().num_ahead_steps == 0


def test_torch_sees_no_synchronisation(engine: Engine) -> None:
    # It does not see all: not ``Event.synchronize``, a copy from memory that is not pinned, or what Triton calls. Hence
    # the next test. Over a block's border, where the plan of the attention grows.
    for _ in range(20):
        torch.cuda.set_sync_debug_mode("error")
        step = engine._steps.next()
        torch.cuda.set_sync_debug_mode("default")
        assert engine._steps.in_flight is not None
        take_in(engine, step)


def test_a_step_is_launched_while_the_device_is_busy(engine: Engine) -> None:
    torch.cuda._sleep(SLEEP_CYCLES)  # type: ignore[no-untyped-call]
    woken = torch.cuda.Event()  # type: ignore[no-untyped-call]
    woken.record()
    step = engine._steps.next()
    assert engine._steps.in_flight is not None
    assert not woken.query(), "the host waited for what was queued before the step"
    take_in(engine, step)
    assert not woken.query(), "the host waited for more than the tokens of the step before"
    torch.cuda.synchronize()
    drain(engine)


def test_copies() -> None:
    for values, dtype in [([1, 2, 3], torch.int64), ([[0.5, 1.0], [2.0, 4.0]], torch.float32)]:
        there = to_device(values, dtype, CUDA)
        assert (there.is_cuda, there.dtype, there.tolist()) == (True, dtype, values)
    torch.cuda._sleep(100_000_000)  # type: ignore[no-untyped-call]
    ids = to_device([7, 8, 9], torch.int64, CUDA) * 2
    assert HostCopy(ids).read() == [14, 16, 18]
