"""What is done ahead of readiness, through the whole pipeline: the same tokens, and fewer of them left to compute."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import pytest

import parrot_mq as P
from parrot_mq.messages import CostModel
from parrot_mq.scheduler import Scheduler
from parrot_mq.settings import SchedulerSettings
from parrot_workers.engine.engine import Engine
from parrot_workers.engine.engine_settings import EngineSettings
from parrot_workers.engine.port import EnginePort, FinishReason, SequenceOutput
from parrot_workers.sim import InstantClock, SimEngine
from parrot_workers.worker.options import DEMO_FOLDER

BACKGROUND = (
    "You are the secretary of a small company. Each week its people meet and say what they have done, what they plan "
    "and who does it. Take down what was decided, by whom it will be done and until when, and leave out the rest. "
) * 3
STREAMED = SchedulerSettings(lane_credits=0)
EAGER = dataclasses.replace(STREAMED, streamed_prefill=False)
OFF = dataclasses.replace(EAGER, eager_prefill=False, retain_prefixes=False)


@P.semantic_function
def talk(topic: P.Input, words: P.Output = P.output(max_tokens=60, temperature=0.0, ignore_eos=True)):
    """Talk about {{topic}}:{{words}}"""


def _minutes(words: P.Input, minutes: P.Output = P.output(max_tokens=12, temperature=0.0, ignore_eos=True)) -> None: ...


_minutes.__doc__ = BACKGROUND + "They said: {{words}} In short:{{minutes}}"
minutes = P.semantic_function(_minutes)


def warm_sim() -> SimEngine:
    """Make a simulated engine that spends no time, and says that prompts are dear."""
    return SimEngine(clock=InstantClock(), cost=CostModel(prefill_per_token_ms=0.1))


class Watched:
    """An engine that makes one step at a time for each permit, and what came out of it."""

    def __init__(self, engine: EnginePort) -> None:
        self._engine = engine
        self._permits = threading.Semaphore(0)
        self.prefilled: list[str] = []
        self.finished: list[SequenceOutput] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def permit(self, steps: int = 1_000_000) -> None:
        self._permits.release(steps)

    def step(self) -> list[SequenceOutput]:
        assert self._permits.acquire(timeout=60), "the test has forgotten this engine"
        outputs = self._engine.step()
        self.prefilled += [output.id for output in outputs if output.finish is FinishReason.PREFILLED]
        self.finished += [output for output in outputs if output.full_text]
        return outputs

    def close(self) -> None:
        self._engine.close()


async def run(
    open_store: Any, working: Any, make_engine: Callable[[], EnginePort], settings: SchedulerSettings, hints: int
) -> list[SequenceOutput]:
    """Run a request and one that reads its output; step by step until ``hints`` prompts were computed ahead. Returns
    their outputs.
    """
    engines: list[Watched] = []

    def make() -> EnginePort:
        engines.append(Watched(make_engine()))
        return engines[0]

    async with await open_store() as store, await open_store() as its_store, working(open_store, make):
        scheduler = Scheduler(its_store, settings)
        task = asyncio.create_task(scheduler.run())
        (engine,) = engines
        try:
            async with P.connect(store=store) as client, client.session(tenant="acme"):
                text = talk("parrots")
                summary = minutes(text)
                await summary.published()
                for _ in range(50):
                    if len(engine.prefilled) >= hints:
                        break
                    engine.permit(1)
                    await asyncio.sleep(0.05)
                engine.permit()
                await summary.get(timeout_s=60)
        finally:
            engine.permit()
            scheduler.stop()
            await task
    assert len(engine.finished) == 2
    return engine.finished


def check(off: list[SequenceOutput], on: list[SequenceOutput]) -> int:
    """Assert that all tokens are the same; return how many more of the second prompt were cached."""
    assert [output.full_token_ids for output in on] == [output.full_token_ids for output in off]
    assert [output.full_text for output in on] == [output.full_text for output in off]
    assert on[1].num_prompt_tokens == off[1].num_prompt_tokens
    assert off[1].num_cached_tokens == 0
    return on[1].num_cached_tokens


async def test_a_simulated_engine_finds_the_prefix_of_the_second_request(open_store: Any, working: Any) -> None:
    off = await run(open_store, working, warm_sim, OFF, 0)
    on = await run(open_store, working, warm_sim, EAGER, 1)
    background = len(BACKGROUND) // 4
    assert background - 16 <= check(off, on) <= background + 16


def make_demo() -> EnginePort:
    return Engine(EngineSettings(DEMO_FOLDER, max_num_seqs=4, num_blocks=256, calibrate=False, speculate=False))


@pytest.fixture(scope="module")
def demo_off() -> list[list[SequenceOutput]]:
    """What the demo's model says with every switch off, once it was asked."""
    return []


@pytest.mark.parametrize(("settings", "hints"), [(EAGER, 1), (STREAMED, 3)], ids=["eager", "streamed"])
async def test_the_demo_model_says_the_same_and_computes_less(
    settings: SchedulerSettings, hints: int, open_store: Any, working: Any, demo_off: list[list[SequenceOutput]]
) -> None:
    if not demo_off:
        demo_off.append(await run(open_store, working, make_demo, OFF, 0))
    cached = check(demo_off[0], await run(open_store, working, make_demo, settings, hints))
    first, second = demo_off[0]
    known = second.num_prompt_tokens - first.num_output_tokens - 8
    assert cached >= (known if settings is STREAMED else known - 32)
