"""The reference's runs through the whole simulated pipeline, beside the seconds that it published.

Shapes are those of ``test_profile_fits``, which checks the cost models alone: its documents as its own rule cuts them.
What the reference does not have (work ahead of readiness, single-flight) is switched off, and so is the overlap of
prefill and decode, which its costs were fitted without. The bounds are ratios of
simulated to published seconds; docs/simulation.md has the table.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Coroutine

import pytest

import parrot_mq as P
from parrot_mq.sdk.function import SemanticFunction
from parrot_mq.settings import SchedulerSettings
from parrot_workers.simulation import EngineSetup, Profile, World, load_profile, simulate

AS_THE_REFERENCE = SchedulerSettings(
    sibling_admission=False, eager_prefill=False, streamed_prefill=False, retain_prefixes=False, single_flight=False
)
REFERENCE_BATCH = 8000
"""Tokens of prompts that its engine fills in one step."""
Function = SemanticFunction[..., P.SemanticVariable]


def of_the_reference(name: str) -> Profile:
    profile = load_profile(name)
    return dataclasses.replace(profile, cost=dataclasses.replace(profile.cost, overlap=0.0))


def text(name: str, num_tokens: int) -> str:
    """Four bytes for each token, unlike every other text from the first token on."""
    return f"{name:_<16}" + "abc " * (num_tokens - 4)


def function(name: str, num_inputs: int, template_tokens: int, output_tokens: int) -> Function:
    inputs = "".join(f"{{{{input:i{n}}}}}" for n in range(num_inputs))
    template = "T" * 4 * template_tokens + inputs + "{{output:out}}"
    outputs = {"out": P.output(max_tokens=output_tokens, ignore_eos=True)}
    return SemanticFunction.from_template(template, name=name, outputs=outputs)


async def chain(world: World, output: int) -> float:
    refine = function("refine", 2, 97, output)
    async with world.client.session():
        summary = function("begin", 1, 97, output)(text("chunk 0", 474))
        for n in range(1, 66):
            summary = refine(text(f"chunk {n}", 474), summary)
        await summary.get(perf=P.LATENCY)
    return world.now_s()


async def map_reduce(world: World, output: int) -> float:
    summarise, join = function("map", 1, 31, output), function("reduce", 57, 34, output)
    async with world.client.session():
        parts = [summarise(text(f"chunk {n}", 465)) for n in range(57)]
        await join(*parts).get(perf=P.LATENCY)
    return world.now_s()


async def copilot(world: World, output: int) -> float:
    answer = function("copilot", 2, 1, output)
    shared = text("shared", 5106)
    async with world.client.session():
        await answer(shared, text("warm", 8)).get(perf=P.LATENCY)
        began_s = world.now_s()
        await P.gather([answer(shared, text(f"query {n}", 1060)) for n in range(32)], perf=P.LATENCY)
    return world.now_s() - began_s


@pytest.mark.parametrize(
    ("run", "profile", "output", "published_s", "low", "high"),
    [
        (chain, "a100-13b", 25, 41.7, 0.90, 1.0),
        (chain, "a100-13b", 50, 76.2, 0.93, 1.02),
        (chain, "a100-13b", 100, 145.8, 0.95, 1.02),
        (map_reduce, "a100-13b", 25, 6.70, 0.85, 1.0),
        (map_reduce, "a100-13b", 50, 8.50, 0.88, 1.02),
        (map_reduce, "a100-13b", 100, 12.60, 0.93, 1.02),
        (copilot, "a100-7b", 200, 91.6 / 9, 0.9, 1.05),
    ],
)
def test_published_seconds(
    run: Callable[[World, int], Coroutine[None, None, float]],
    profile: str,
    output: int,
    published_s: float,
    low: float,
    high: float,
) -> None:
    engine = EngineSetup(of_the_reference(profile), max_num_batched_tokens=REFERENCE_BATCH)
    simulated_s = simulate(functools.partial(run, output=output), [engine], scheduler=AS_THE_REFERENCE)
    assert low < simulated_s / published_s < high
