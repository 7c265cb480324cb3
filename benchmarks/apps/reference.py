"""What the reference published (Parrot, OSDI'24, and its artifact's results), to be read beside our rows.

An aim is a ratio that its system had over its baseline, clients of another engine. It is held against several of ours,
each in a column of its own: the baseline on our engine that is nearest to that one; the stronger of those with prefix
caching, which most of its rows had nothing like; the reference's own baseline, simulated; and its published seconds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

LATENCY = ("latency-6144",)
THROUGHPUT = ("throughput",)
PAGED = ("throughput+pages",)
STRONGEST = ("latency+cache", "throughput+cache")


@dataclasses.dataclass(frozen=True, slots=True)
class Aim:
    """``ratio``: how many times longer than its system the reference's baseline took; ``named`` stand for that here."""

    experiment: str
    point: str
    ratio: float
    named: tuple[str, ...] = LATENCY
    mode: str = "simulated"

    @property
    def reference(self) -> str:
        """The system that is the reference's own baseline of this ratio."""
        return "reference-throughput" if self.named == THROUGHPUT else "reference"


def _both(ratios: dict[str, float]) -> dict[str, float]:
    """Return the ratios for the shapes as written, and as run."""
    return ratios | {f"{point}, as run": ratio for point, ratio in ratios.items()}


CHAIN_RATIOS = {"out=25": 1.38, "out=50": 1.21, "out=75": 1.14, "out=100": 1.11}
BACKGROUND_RATIOS = {"rate=0": 1.21, "rate=1": 1.19, "rate=2": 1.31, "rate=3": 1.79, "rate=3.5": 2.38}
CONCURRENT_RATIOS = {"chains=10": 1.38, "chains=15": 1.52, "chains=20": 1.63, "chains=25": 1.68}
AGENTS_LATENCY_RATIOS = {"files=4": 2.95, "files=8": 4.91, "files=12": 7.26, "files=16": 11.7}
AGENTS_THROUGHPUT_RATIOS = {"files=4": 1.27, "files=8": 1.58, "files=12": 2.06, "files=16": 2.45}
MAP_REDUCE_RATIOS = {"out=25": 1.70, "out=50": 2.04, "out=75": 2.22, "out=100": 2.37}


def _sweep(experiment: str, ratios: dict[str, float], named: tuple[str, ...] = LATENCY) -> list[Aim]:
    return [Aim(experiment, point, ratio, named) for point, ratio in ratios.items()]


AIMS: tuple[Aim, ...] = (
    *_sweep("chain", _both(CHAIN_RATIOS)),
    *_sweep("chain", {"chunk=512": 1.2, "chunk=1536": 1.2, "chunk=2048": 1.2}),
    *_sweep("chain", {"out=25, summary first": 1.38, "out=50, summary first": 1.21}),
    *_sweep("chain-background", _both(BACKGROUND_RATIOS)),
    *_sweep("concurrent-chains", _both(CONCURRENT_RATIOS)),
    *_sweep("map-reduce", _both(MAP_REDUCE_RATIOS)),
    *_sweep("map-reduce", {"chunk=512": 1.96, "chunk=1536": 2.07, "chunk=2048": 2.16}),
    *_sweep("copilot", {"batch=8": 1.1, "batch=16": 1.3, "batch=32": 1.4, "batch=64": 1.7}, PAGED),
    *_sweep("copilot", {"batch=8": 1.8, "batch=16": 2.4}, THROUGHPUT),
    *_sweep("multi-agent", _both(AGENTS_LATENCY_RATIOS)),
    *_sweep("multi-agent", _both(AGENTS_THROUGHPUT_RATIOS), THROUGHPUT),
    *_sweep("mixed", {"both": 3.7}),
    *_sweep("mixed", {"both": 1.05}, THROUGHPUT),
    Aim("chain", "out=50", 1.3, STRONGEST, "real"),
    Aim("map-reduce", "out=50", 2.0, STRONGEST, "real"),
    Aim("multi-agent", "files=4", 2.0, STRONGEST, "real"),
)
"""Ratios as published; by 11.7 x its multi-agent row is summed up, where its artifact's seconds give 8.9 x."""


@dataclasses.dataclass(frozen=True, slots=True)
class Published:
    """Seconds of its own system, and of its baseline by the name that this has here."""

    own_s: float
    baselines_s: dict[str, float]


def _mean(first: float, second: float) -> float:
    return (first + second) / 2


def _published(experiment: str, points: Sequence[str], own: Sequence[float], **baselines: Sequence[float]) -> Seconds:
    names = [name.replace("_", "-") for name in baselines]
    return {
        (experiment, point): Published(own_s, dict(zip(names, of_baselines, strict=True)))
        for point, own_s, *of_baselines in zip(points, own, *baselines.values(), strict=True)
    }


Seconds = dict[tuple[str, str], Published]
PUBLISHED: Seconds = {
    **_published(
        "chain",
        [f"out={out}, as run" for out in (25, 50, 75, 100)],
        own=[_mean(28.9, 40.4), _mean(52.9, 73.6), _mean(77.1, 106.7), _mean(101.5, 140.3)],
        reference=[_mean(38.9, 54.9), _mean(64.3, 88.1), _mean(87.2, 121.4), _mean(112.1, 155.0)],
    ),
    **_published(
        "chain-background",
        [f"rate={rate:g}, as run" for rate in (0, 1, 2, 3, 3.5)],
        own=[52.4, 64.7, 68.7, 72.4, 72.9],
        reference=[62.9, 73.8, 83.4, 116.0, 164.3],
    ),
    **_published(
        "concurrent-chains",
        [f"chains={count}, as run" for count in (10, 15, 20, 25)],
        own=[81.7, 113.3, 143.7, 174.6],
        reference=[112.8, 171.9, 234.7, 292.9],
    ),
    **_published(
        "map-reduce",
        [f"out={out}, as run" for out in (25, 50, 75, 100)],
        own=[_mean(5.4, 8.0), _mean(7.1, 9.8), _mean(8.8, 12.1), _mean(10.7, 14.4)],
        reference=[_mean(9.1, 13.3), _mean(13.4, 20.2), _mean(18.3, 27.6), _mean(22.9, 35.3)],
    ),
    **_published(
        "multi-agent",
        [f"files={files}, as run" for files in (4, 8, 12, 16)],
        own=[184.0, 195.0, 205.0, 214.0],
        reference=[543.0, 956.7, 1488.9, 1902.6],
        reference_throughput=[234.0, 307.9, 422.2, 519.5],
    ),
    **_published("copilot", [f"batch={batch}" for batch in (8, 16, 32, 64)], own=[7.7, 9.8, 13.3, 20.1]),
    **_published("mixed", ["both"], own=[23.2]),
}
"""Of the articles that are run here, where it has seconds for each (its means are over ten), in the shapes that it
really ran: no seconds belong to the others. Its own multi-agent seconds have 6 taken off for communication."""

NORMALISED_BOUND_MS = 125.0
"""GPTs: a system's request rate is the largest with less than this for each output token; at a rate of 8 the
reference's own system has 125.7 ms."""
RATE_RATIOS = {("throughput", ""): 12.0, ("throughput+pages", ""): 2.4, ("parrot_mq", "prefix_affinity"): 3.0}
"""How many times the rate of each (system, feature off) the reference's system has within its bound."""
CHAT_LOSS, MAP_REDUCE_LOSS = 0.10, 0.15
"""Mixed: chats may decode this much slower than alone, map-reduces generate this much less than alone."""
CHAT_RATIOS = (
    ("chat_normalised_ms", "latency-6144", 5.5),
    ("chat_normalised_ms", "throughput", 1.23),
    ("chat_tpot_ms", "throughput", 1.72),
)
"""Mixed: how many times its own system's a baseline's figure for chats was."""
