"""Small applications for simulations, and an engine to run them on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import parrot_mq as P
from parrot_mq.messages import CostModel
from parrot_workers.simulation import EngineSetup, Profile, World

PROFILE = Profile("test", "for tests", CostModel(0.1, 20.0, 0.2, 0.001), 4000, 16, 256, 32_768, {})


@P.semantic_function
def refine(chunk: P.Input, before: P.Input, summary: P.Output = P.output(max_tokens=25, ignore_eos=True)) -> None:
    """Refine the summary {{before}} by what is new in {{chunk}}. The refined summary:{{summary}}"""


@P.semantic_function
def summarise(chunk: P.Input, summary: P.Output = P.output(max_tokens=25, ignore_eos=True)) -> None:
    """Summarise this part of a document in a few words: {{chunk}}. Summary:{{summary}}"""


@P.semantic_function
def join(
    a: P.Input, b: P.Input, c: P.Input, d: P.Input, summary: P.Output = P.output(max_tokens=50, ignore_eos=True)
) -> None:
    """Make one summary of these: {{a}}, {{b}}, {{c}}, {{d}}. One summary:{{summary}}"""


async def chain(world: World, length: int = 5) -> tuple[str, float]:
    """Refine a summary ``length`` times; return it and the virtual seconds that it took."""
    began_s = world.now_s()
    async with world.client.session() as session:
        summary = session.variable("nothing yet")
        for number in range(length):
            summary = refine(f"chapter {number}: " + "and then " * 200, summary)
        return await summary.get(perf=P.LATENCY), world.now_s() - began_s


async def map_reduce(world: World) -> tuple[str, float]:
    """Summarise four chunks and join the summaries; return that and the virtual seconds that it took."""
    began_s = world.now_s()
    async with world.client.session():
        parts = P.map(summarise, [f"chapter {number}: " + "and then " * 200 for number in range(4)])
        return await join(*parts).get(perf=P.LATENCY), world.now_s() - began_s


@pytest.fixture
def profile() -> Profile:
    """A small engine with round costs."""
    return PROFILE


@pytest.fixture
def one_engine() -> list[EngineSetup]:
    """One such engine."""
    return [EngineSetup(PROFILE)]


@pytest.fixture
def run_chain() -> Callable[..., Awaitable[Any]]:
    """``await run_chain(world, length)``."""
    return chain


@pytest.fixture
def run_map_reduce() -> Callable[..., Awaitable[Any]]:
    """``await run_map_reduce(world)``."""
    return map_reduce
