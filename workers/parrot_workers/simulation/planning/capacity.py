"""How a load fares on so many engines, and whether that is good enough."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

from parrot_workers.simulation.planning.drawn import Arrival
from parrot_workers.simulation.planning.offer import Sample, offer
from parrot_workers.simulation.run import simulate
from parrot_workers.simulation.setup import EngineSetup
from parrot_workers.simulation.world import World


@dataclasses.dataclass(frozen=True, slots=True)
class Spread:
    """The middle and the end of a distribution."""

    p50: float
    p95: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Return those of ``values`` (nearest rank); not a number if there are none."""
        ordered = sorted(values)
        return cls(_rank(ordered, 0.50), _rank(ordered, 0.95))


def _rank(ordered: Sequence[float], share: float) -> float:
    return ordered[math.ceil(share * len(ordered)) - 1] if ordered else math.nan


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a load on ``num_engines``.

    Seconds until an answer was there and until it began, milliseconds between its tokens. ``utilisation`` is the part
    of the time in which engines computed, ``output_tokens_per_s`` what all of them generated in a second, both from the
    first arrival to the last answer (``span_s``); ``cached_share`` the part of all prompt tokens that was found in
    caches, ``mean_batch`` the sequences in a decode step.
    """

    num_engines: int
    latency_s: Spread
    ttft_s: Spread
    tpot_ms: Spread
    utilisation: float
    output_tokens_per_s: float
    cached_share: float
    mean_batch: float
    span_s: float
    num_answers: int


@dataclasses.dataclass(frozen=True, slots=True)
class Goal:
    """What must hold; None: whatever it is."""

    p50_s: float | None = None
    p95_s: float | None = None
    ttft_p95_s: float | None = None
    tpot_p95_ms: float | None = None

    @property
    def is_set(self) -> bool:
        """Whether it asks for anything."""
        return any(getattr(self, field.name) is not None for field in dataclasses.fields(self))

    def misses(self, outcome: Outcome) -> tuple[str, ...]:
        """Return what ``outcome`` falls short of."""
        pairs = (
            ("p50_s", outcome.latency_s.p50, self.p50_s),
            ("p95_s", outcome.latency_s.p95, self.p95_s),
            ("ttft_p95_s", outcome.ttft_s.p95, self.ttft_p95_s),
            ("tpot_p95_ms", outcome.tpot_ms.p95, self.tpot_p95_ms),
        )
        return tuple(name for name, found, bound in pairs if bound is not None and not found <= bound)


def measure(
    arrivals: Sequence[Arrival], setup: EngineSetup, num_engines: int, *, seed: int, real_limit_s: float
) -> Outcome:
    """Return how ``arrivals`` fare on that many engines of ``setup``. Raises what ``simulate`` raises."""

    async def main(world: World) -> Outcome:
        samples = await offer(world, arrivals)
        return _outcome(world, samples, num_engines, world.now_s() - arrivals[0].at_s)

    engines = [dataclasses.replace(setup, count=num_engines)]
    return simulate(main, engines, seed=seed, limit_s=math.inf, real_limit_s=real_limit_s)


def _outcome(world: World, samples: Sequence[Sample], num_engines: int, span_s: float) -> Outcome:
    totals = [engine.totals for engine in world.engines]
    stats = [engine.stats() for engine in world.engines]
    cached = sum(each.num_cached_tokens for each in stats)
    computed = sum(each.num_prefill_tokens for each in totals)
    return Outcome(
        num_engines=num_engines,
        latency_s=Spread.of(sample.latency_s for sample in samples),
        ttft_s=Spread.of(sample.ttft_s for sample in samples),
        tpot_ms=Spread.of(1000 * sample.tpot_s for sample in samples if sample.tpot_s is not None),
        utilisation=sum(each.busy_ms for each in totals) / 1000 / num_engines / span_s,
        output_tokens_per_s=sum(each.num_generated_tokens for each in stats) / span_s,
        cached_share=cached / (cached + computed),
        mean_batch=sum(each.num_decoded for each in totals) / max(1, sum(each.num_decode_steps for each in totals)),
        span_s=span_s,
        num_answers=len(samples),
    )


def smallest(outcomes: Iterable[Outcome], goal: Goal) -> int | None:
    """Return the smallest number of engines that reaches the goal; None if none does, or there is no goal."""
    return min((each.num_engines for each in outcomes if goal.is_set and not goal.misses(each)), default=None)


def as_json(outcome: Outcome, goal: Goal) -> dict[str, Any]:
    """Return an outcome as plain values, rounded to a millionth; a distribution without values is null."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items()}
        if isinstance(value, float):
            return None if math.isnan(value) else round(value, 6)
        return value

    found: dict[str, Any] = plain(dataclasses.asdict(outcome))
    if goal.is_set:
        found["misses"] = list(goal.misses(outcome))
    return found
