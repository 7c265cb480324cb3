"""Offering a drawn load to a simulated deployment, as its users would."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
from collections.abc import Sequence

from parrot_mq.messages import LATENCY, THROUGHPUT, Objective
from parrot_mq.sdk.function import SemanticFunction
from parrot_mq.sdk.markers import output
from parrot_mq.sdk.variable import SemanticVariable
from parrot_workers.simulation.planning.drawn import Arrival, Part
from parrot_workers.simulation.planning.workload import Chain, Chat, MapReduce, SharedPrompt
from parrot_workers.simulation.world import World

PATIENCE_S = 1e6
"""Users wait as long as it takes: an overloaded deployment shows by its latencies."""

Function = SemanticFunction[..., SemanticVariable]


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """One application, or one turn of a chat, in seconds: until its answer was there, and until that began.

    ``tpot_s`` is the mean time between two tokens of the answer; None if it had one token. Intermediate results count
    for nothing but the time that they take.
    """

    latency_s: float
    ttft_s: float
    tpot_s: float | None


async def offer(world: World, arrivals: Sequence[Arrival]) -> list[Sample]:
    """Start every application when it arrives; return a sample for each answer, in the order of their ends."""
    samples: list[Sample] = []
    began_s = world.now_s()
    async with asyncio.TaskGroup() as group:
        for arrival in arrivals:
            await asyncio.sleep(began_s + arrival.at_s - world.now_s())
            group.create_task(_User(world, arrival, samples).run())
    return samples


class _User:
    """One application's user."""

    def __init__(self, world: World, arrival: Arrival, samples: list[Sample]) -> None:
        self._world = world
        self._arrival = arrival
        self._samples = samples
        is_latency = arrival.application.objective == "latency"
        self._objective: Objective = LATENCY if is_latency else THROUGHPUT

    async def run(self) -> None:
        arrival = self._arrival
        async with self._world.client.session():
            match arrival.application:
                case Chain():
                    await self._chain(arrival.parts)
                case MapReduce():
                    await self._map_reduce(arrival.parts)
                case Chat(think_s=think_s):
                    await self._chat(arrival.common, arrival.parts, think_s)
                case SharedPrompt():
                    (query,) = arrival.parts
                    await self._answer(_function("ask", 2, query.output_tokens)(arrival.common, query.text))

    async def _chain(self, parts: Sequence[Part]) -> None:
        first, *rest = parts
        summary = _function("begin", 1, first.output_tokens)(first.text)
        for part in rest:
            summary = _function("refine", 2, part.output_tokens)(part.text, summary)
        await self._answer(summary)

    async def _map_reduce(self, parts: Sequence[Part]) -> None:
        *maps, last = parts
        summaries = [_function("map", 1, part.output_tokens)(part.text) for part in maps]
        await self._answer(_function("reduce", len(summaries), last.output_tokens)(*summaries))

    async def _chat(self, system: str, parts: Sequence[Part], think_s: float) -> None:
        said: list[str | SemanticVariable] = [system]
        for turn, part in enumerate(parts):
            if turn:
                await asyncio.sleep(think_s)
            said.append(part.text)
            answer = _function("chat", len(said), part.output_tokens)(*said)
            await self._answer(answer)
            said.append(answer)

    async def _answer(self, answer: SemanticVariable) -> None:
        asked_s = self._world.now_s()
        await answer.get(perf=self._objective, timeout_s=PATIENCE_S)
        latency_s = self._world.now_s() - asked_s
        request = await answer.producer()
        assert request is not None, "an answer that nobody gave"
        timing = self._world.timings.of(request.id)
        assert timing is not None, "an answer that no engine gave"
        self._samples.append(Sample(latency_s, timing.first_s - asked_s, timing.tpot_s))


@functools.lru_cache(maxsize=4096)
def _function(name: str, num_inputs: int, output_tokens: int) -> Function:
    """Return a function of so many inputs, one after the other, that answers exactly so many tokens."""
    inputs = "".join(f"{{{{input:i{number}}}}}" for number in range(num_inputs))
    template = f"You are asked to {name}.\n{inputs}{{{{output:answer}}}}"
    return SemanticFunction.from_template(
        template, name=name, outputs={"answer": output(max_tokens=output_tokens, ignore_eos=True)}
    )
