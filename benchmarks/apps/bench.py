"""What an experiment is: points, and how to run one of them against a driver."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import statistics
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Protocol

from benchmarks.apps.drivers import Driver, Ran
from benchmarks.apps.texts import Texts


@dataclasses.dataclass(frozen=True, slots=True)
class Scale:
    """By how much a run is smaller than the reference's: every token count is divided by ``tokens``.

    ``work`` divides how much is done: documents, requests (never below one). ``engines`` 0 is the reference's number.
    """

    tokens: int = 1
    work: int = 1
    engines: int = 0
    rate: float = 1.0
    """Arrivals come this many times as fast."""

    def length(self, num_tokens: int) -> int:
        return max(1, num_tokens // self.tokens)

    def count(self, number: int) -> int:
        return max(1, number // self.work)


@dataclasses.dataclass(frozen=True, slots=True)
class Bench:
    """One run's surroundings."""

    driver: Driver
    texts: Texts
    scale: Scale
    seed: int

    def random(self, *key: object) -> random.Random:
        """Return a source of draws that is the same for every system."""
        return random.Random(f"{self.seed} {key}")

    def text(self, num_tokens: int, *key: object) -> str:
        """Return a text of ``num_tokens`` tokens at the reference's scale."""
        return self.texts.text(self.scale.length(num_tokens), *key) if num_tokens else ""


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What a run of a point showed: ``seconds`` is the experiment's measure, smaller is better; the rest is beside it."""

    seconds: float
    extras: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class Point:
    """A setting of an experiment; ``label`` says which, as in "out=25". ``quick``: it is run with --quick."""

    label: str
    values: dict[str, Any]
    quick: bool = False


class Experiment(Protocol):
    """A workload of the reference."""

    name: str
    profile: str
    """The simulated engines'."""
    num_engines: int
    context_tokens: int
    """What a typical sequence holds, which a latency-centric capacity is computed for."""
    points: Sequence[Point]
    features: Sequence[str]
    """What is switched off in turn, at the point that is quick."""
    baselines: Sequence[str]
    quick_values: Mapping[str, Any]
    """What makes a point smaller with --quick."""

    async def run(self, bench: Bench, **values: Any) -> Outcome:
        """Run one point."""


async def timed(runs: Sequence[Awaitable[Ran]]) -> list[Ran]:
    """Run applications at once."""
    return list(await asyncio.gather(*runs))


def mean_seconds(runs: Sequence[Ran]) -> float:
    return statistics.fmean(run.elapsed_s for run in runs)


def arrivals_s(source: random.Random, rate_per_s: float, count: int) -> list[float]:
    """Return the times of ``count`` Poisson arrivals, the first at 0."""
    now_s, times = 0.0, []
    for _ in range(count):
        times.append(now_s)
        now_s += source.expovariate(rate_per_s)
    return times


async def after(delay_s: float, run: Awaitable[Ran]) -> Ran:
    """Begin a run later."""
    await asyncio.sleep(delay_s)
    return await run
