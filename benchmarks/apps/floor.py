"""What no scheduler could beat: the least time an application takes alone, by the cost model and its own shape.

An engine that runs it cannot do with fewer decode steps than the longest path of calls has tokens; every sequence adds
its part to as many steps as it has tokens, and reads what it shares with no other; all prompts are computed, each
different beginning once, less what steps hide of that; and one round trip is paid.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import functools
import statistics
from collections.abc import Sequence

import parrot_mq as P
from benchmarks.apps.application import Application, Function, Handle
from benchmarks.apps.bench import FULL, Bench, Outcome, Scale
from benchmarks.apps.drivers import MIN_ROUND_TRIP_S, Ran, RequestTrace
from benchmarks.apps.experiments import EXPERIMENTS
from benchmarks.apps.texts import SimulatedTexts
from parrot_mq.messages import CostModel
from parrot_workers.sim.content import count_tokens
from parrot_workers.simulation.profiles import load_profile

MANY_TOKENS = 10**9
"""More than a step can hide."""


@dataclasses.dataclass(frozen=True, slots=True)
class Floor:
    """``seconds``: below which the measure of a point cannot be on our engines.

    ``depth``: calls on the longest path of an application, each of which a client that orchestrates pays a round trip
    for. Mean over the applications with more than one call.
    """

    seconds: float
    depth: float


@functools.lru_cache
def floor_of(name: str, label: str, scale: Scale = FULL) -> Floor:
    """Return the floor of an experiment's point. Its applications must begin at once and have one engine."""
    experiment = EXPERIMENTS[name]
    (point,) = (point for point in experiment.points if point.label == label)
    driver = _Drafts(load_profile(experiment.profile).cost)

    async def draft() -> Outcome:
        return await experiment.run(Bench(driver, SimulatedTexts(0), scale, 0), **point.values)

    outcome = asyncio.run(draft())
    return Floor(outcome.seconds, statistics.fmean(driver.depths))


class _Drafts:
    """A driver that runs nothing: an application takes its floor."""

    def __init__(self, cost: CostModel) -> None:
        self._cost = cost
        self.depths: list[int] = []

    async def run(
        self, name: str, application: Application, objective: P.Objective = P.LATENCY, *, stream: bool = False
    ) -> Ran:
        draft = Draft()
        application(draft)
        if draft.depth > 1:
            self.depths.append(draft.depth)
        num_output = sum(call.num_output for call in draft.calls)
        return Ran(0.0, MIN_ROUND_TRIP_S + draft.least_ms(self._cost) / 1000, num_output)

    async def requests(self) -> list[RequestTrace]:
        return []


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Call:
    num_output: int
    num_steps: int
    """Decode steps of the longest path that ends here; the first token of a call comes with its prompt."""
    depth: int
    beginnings: tuple[tuple[tuple[object, ...], int], ...]
    """The segments up to each boundary of the prompt, and the tokens of the last of them."""


class Draft:
    """``Calls`` of one application: keeps what they are made of."""

    def __init__(self) -> None:
        self.calls: list[_Call] = []

    @property
    def depth(self) -> int:
        """Calls on the longest path."""
        return max(call.depth for call in self.calls)

    def call(self, function: Function, *inputs: str | Handle) -> Handle:
        before = [value for value in inputs if isinstance(value, _Call)]
        call = _Call(
            num_output=function.num_output,
            num_steps=max((call.num_steps for call in before), default=0) + function.num_output - 1,
            depth=max((call.depth for call in before), default=0) + 1,
            beginnings=_beginnings(function, inputs),
        )
        self.calls.append(call)
        return call

    def least_ms(self, cost: CostModel) -> float:
        """Return the least time that one engine of these costs takes."""
        num_steps = max(call.num_steps for call in self.calls)
        readers = collections.Counter(beginning for call in self.calls for beginning, _ in call.beginnings)
        decode_ms = num_steps * cost.decode_base_ms
        prefill_ms = num_prefilled = 0.0
        computed: set[tuple[object, ...]] = set()
        for call in self.calls:
            prompt = shared = 0
            for beginning, num_tokens in call.beginnings:
                if beginning not in computed:
                    computed.add(beginning)
                    prefill_ms += cost.prefill_ms(num_tokens, prompt)
                    num_prefilled += num_tokens
                prompt += num_tokens
                shared += num_tokens if readers[beginning] > 1 else 0
            alone_ms = cost.decode_step_ms(1, prompt + call.num_output / 2, shared) - cost.decode_base_ms
            decode_ms += (call.num_output - 1) * alone_ms
        hidden_ms = min(num_steps * cost.hidden_ms(MANY_TOKENS), num_prefilled * cost.hidden_ms(1))
        return decode_ms + prefill_ms - hidden_ms


def _beginnings(function: Function, inputs: Sequence[str | Handle]) -> tuple[tuple[tuple[object, ...], int], ...]:
    segments: list[object] = [function.parts[0]]
    for value, part in zip(inputs, function.parts[1:], strict=True):
        segments += [value, part]
    return tuple(
        (
            tuple(segments[: index + 1]),
            segment.num_output if isinstance(segment, _Call) else count_tokens(str(segment)),
        )
        for index, segment in enumerate(segments)
    )
