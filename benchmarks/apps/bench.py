"""What an experiment is: points, and how to run one of them against a driver."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from benchmarks.apps.drivers import Driver, Ran, RequestTrace
from benchmarks.apps.texts import Texts
from parrot_mq.messages import RequestShape


@dataclasses.dataclass(frozen=True, slots=True)
class Scale:
    """By how much a run is smaller than the reference's: every token count is divided by ``tokens``.

    ``work`` divides how many documents and users there are (never below one). ``engines`` 0 is the reference's number.
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


FULL = Scale()
"""As the reference ran it: in simulation."""
REAL = Scale(tokens=4, work=4, engines=1, rate=2.0)
"""On this machine's CPU."""


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
    """What a run showed: ``seconds`` is the experiment's measure, smaller is better; the rest is beside it."""

    seconds: float
    extras: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """A run: what it showed, and each call's life."""

    outcome: Outcome
    traces: list[RequestTrace]


@dataclasses.dataclass(frozen=True, slots=True)
class Point:
    """A setting of an experiment; ``label`` says which, as in "out=25". ``quick``: it is run with --quick.

    ``features`` are switched off in turn here; None: the experiment's, if it is quick. ``baselines`` None: the
    experiment's.
    """

    label: str
    values: dict[str, Any]
    quick: bool = False
    features: Sequence[str] | None = None
    baselines: Sequence[str] | None = None


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A workload.

    ``profile`` and ``num_engines`` are the simulated engines; ``shape`` is a typical request, which a latency-centric
    capacity is computed for. ``features`` are switched off in turn, at the points that are quick and say nothing else;
    ``quick_values`` make those smaller with --quick. ``run`` runs a point: a bench, and the point's values by name.
    """

    name: str
    profile: str
    num_engines: int
    shape: RequestShape
    baselines: Sequence[str]
    features: Sequence[str]
    points: Sequence[Point]
    run: Callable[..., Awaitable[Outcome]]
    quick_values: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    num_blocks: int = 0
    """Of KV memory on each simulated engine; 0: what the profile has."""
    reference_tokens: int = 0
    """What the reference's baseline held its engine to (VLLM_CAPACITY of its artifact); 0: it has none here."""


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
