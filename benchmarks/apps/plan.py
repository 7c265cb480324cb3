"""Which runs there are, in which order, and how they become rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import orjson

from benchmarks.apps.bench import Experiment, Outcome, Point, Result
from benchmarks.apps.drivers import Key
from benchmarks.apps.rows import Row, row_of
from benchmarks.apps.systems import SYSTEMS, System, ours


@dataclasses.dataclass(frozen=True)
class Order:
    """One run: a point of an experiment on a system, for the ``repeat``-th time (which is also its seed)."""

    experiment: Experiment
    point: Point
    system: System
    repeat: int


def orders(
    experiments: Iterable[Experiment],
    *,
    repeats: int,
    is_chosen: Callable[[Point], bool] = lambda point: True,
    systems: Sequence[str] = (),
    excluded: Sequence[str] = (),
    is_real: bool = False,
) -> list[Order]:
    """Return all runs, point by point; in each repeat the systems take turns in being first.

    ``systems`` chooses by label; ours always runs. Ablations run where a point has them. ``is_real``: they are runs on
    this machine, not in simulation.
    """
    found: list[Order] = []
    for experiment in experiments:
        for point in experiment.points:
            if not is_chosen(point) or (experiment.is_simulated if is_real else point.dtype):
                continue
            baselines = experiment.baselines if point.baselines is None else point.baselines
            compared = [ours(), *(SYSTEMS[name] for name in baselines if name not in excluded)]
            features = point.features if point.features is not None else experiment.features if point.quick else ()
            compared += [ours(feature) for feature in features if feature not in excluded]
            if systems:
                compared = [system for system in compared if system.label in (ours().label, *systems)]
            for repeat in range(repeats):
                turn = repeat % len(compared)
                found += [Order(experiment, point, system, repeat) for system in compared[turn:] + compared[:turn]]
    return found


class Book:
    """Takes in results and gives the rows of a point when all its runs are there."""

    def __init__(
        self, orders: Sequence[Order], mode: str, about: dict[str, Any], timelines: Path | None = None
    ) -> None:
        self._mode, self._about, self._timelines = mode, about, timelines
        self._left: dict[tuple[str, str], int] = {}
        for order in orders:
            key = order.experiment.name, order.point.label
            self._left[key] = self._left.get(key, 0) + 1
        self._outcomes: dict[tuple[str, str], dict[System, list[Outcome]]] = {}
        self._digests: dict[tuple[str, str], dict[tuple[System, int], dict[Key, str]]] = {}

    def record(self, order: Order, result: Result) -> list[Row]:
        """Take in a run; return the rows of its point if it was the last of them, else nothing."""
        key = order.experiment.name, order.point.label
        self._outcomes.setdefault(key, {}).setdefault(order.system, []).append(result.outcome)
        self._digests.setdefault(key, {})[order.system, order.repeat] = {
            trace.key: trace.digest for trace in result.traces
        }
        if self._timelines is not None and order.repeat == 0:
            self._write(order, result)
        self._left[key] -= 1
        if self._left[key]:
            return []
        seen = self._digests.pop(key)
        return [
            row_of(*key, self._mode, system.name, system.feature_off, outcomes)
            | {"same_outputs": _same(seen, system, len(outcomes))}
            | self._about
            for system, outcomes in self._outcomes.pop(key).items()
        ]

    def _write(self, order: Order, result: Result) -> None:
        assert self._timelines is not None
        self._timelines.mkdir(parents=True, exist_ok=True)
        name = f"{order.experiment.name} {order.point.label} {self._mode} {order.system.label}"
        path = self._timelines / (name.replace(" ", "_").replace("=", "") + ".json")
        path.write_bytes(orjson.dumps(timeline(result), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def timeline(result: Result) -> list[dict[str, Any]]:
    """Return each call's life in milliseconds since the first was made."""
    begin_ms = min((trace.created_ms for trace in result.traces), default=0)
    lives = []
    for trace in result.traces:
        life = dataclasses.asdict(trace)
        for name in ("created_ms", "ready_ms", "queued_ms", "started_ms", "done_ms"):
            life[name] = max(0, life[name] - begin_ms)
        lives.append(life)
    return lives


def _same(digests: dict[tuple[System, int], dict[Key, str]], system: System, repeats: int) -> float | None:
    """Return the part of its calls that a system answered with the very tokens of ours; None if ours did not run.

    A call that only one of them made (background goes on for as long as it is needed) is not counted.
    """
    pairs = [
        (digest, digests[system, repeat][key])
        for repeat in range(repeats)
        for key, digest in digests.get((ours(), repeat), {}).items()
        if key in digests[system, repeat]
    ]
    return round(sum(mine == theirs for mine, theirs in pairs) / len(pairs), 4) if pairs else None
