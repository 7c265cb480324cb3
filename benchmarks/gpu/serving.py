"""Several systems that serve one model, taking turns on the same requests."""

from __future__ import annotations

import dataclasses
import os
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.engine.figures import RunFigures, summary
from benchmarks.engine.fleet import Fleet
from benchmarks.engine.peers import Peer
from benchmarks.engine.shapes import DTYPES
from benchmarks.engine.workload import Requests
from benchmarks.gpu.models import model_folder
from benchmarks.gpu.report import Row
from benchmarks.gpu.run import Run

INTERPRETED = {"PARROT_MQ_KERNELS": "triton"}
"""The environment of our engine in a dry run, which has TRITON_INTERPRET too."""


@dataclasses.dataclass(frozen=True, slots=True)
class ServedSystem:
    """A peer's program with settings (fields of ``serve.Setup``) and an environment of its own.

    Before it is measured it must generate the reference's tokens with a small model of ``check_dtype``: at least the
    part ``least_agreement`` of them (see ``agreement``).
    """

    name: str
    peer: Peer
    setup: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    check_dtype: str = "f32"
    least_agreement: float = 1.0

    @property
    def command(self) -> list[str]:
        return self.peer.command

    def environ(self, cores: list[int]) -> dict[str, str]:
        return {**self.peer.environ(cores), **self.environment}

    def interpreted(self) -> ServedSystem:
        """Return it as it is in a dry run."""
        return dataclasses.replace(self, environment={**self.environment, **INTERPRETED})


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """What every system is loaded for."""

    max_num_seqs: int
    max_len: int
    max_batch_tokens: int
    kv_memory_bytes: int


CHECK_LIMITS = Limits(max_num_seqs=4, max_len=512, max_batch_tokens=512, kv_memory_bytes=32 << 20)
MODELS = (("8b", 0.65), ("1b", 1.0))
"""What is measured, and each one's part of the time that is left."""


@dataclasses.dataclass(frozen=True, slots=True)
class Work:
    """``requests(seed)`` are the batches of a round, new for every seed: the last one is measured."""

    name: str
    batch: int
    requests: Callable[[str], Sequence[Requests]]


class Contest:
    """``systems`` on one model. The tokens of all are compared with those of ``reference``."""

    def __init__(
        self, run: Run, systems: Sequence[ServedSystem], model: str, dtype: str, limits: Limits, reference: str
    ) -> None:
        self._run, self._systems, self._model, self._dtype = run, systems, model, dtype
        self._limits, self._reference = limits, reference
        self._runs: defaultdict[tuple[str, Work], list[RunFigures]] = defaultdict(list)
        self._agreements: defaultdict[tuple[str, Work], list[float]] = defaultdict(list)
        self._slow: set[tuple[str, Work]] = set()
        cores = sorted(os.sched_getaffinity(0))
        self._fleet = Fleet(cores[:1] if run.is_dry else cores, run.say)

    def measure(self, works: Sequence[Work], rounds: int, until_s: float) -> list[Row]:
        """Return a row for each work and system; ``rounds`` at most, and none is begun ``until_s`` into the run."""
        with self._fleet as fleet:
            for system in self._systems:
                fleet.start(system)
            for system in self._systems:
                self._load(system)
            for work in works if rounds > 1 else ():  # everything is compiled and allocated before it counts
                for name in list(fleet.running) if work.name == works[0].name else ():
                    self._batches(name, work.requests("warm-up"))
            for number in range(rounds):
                for work in works:
                    if number == 0 or self._run.used_s < until_s:
                        self._round(work, number)
        return [self._row(system, work) for work in works for system in self._systems]

    def _load(self, system: ServedSystem) -> None:
        device = str(self._run.device)
        setup = {
            "folder": model_folder(self._model, self._dtype, device),
            "dtype": DTYPES[self._dtype],
            "num_threads": 1 if self._run.is_dry else len(os.sched_getaffinity(0)),
            "device": device,
            **dataclasses.asdict(self._limits),
            **system.setup,
        }
        self._fleet.load(system.name, **setup)

    def _round(self, work: Work, number: int) -> None:
        requests = work.requests(f"round {number}")
        turn = number % len(self._systems)
        seen: dict[str, dict[str, Any]] = {}
        for system in [*self._systems[turn:], *self._systems[:turn]]:
            if system.name in self._fleet.running and (system.name, work) not in self._slow:
                before_s = self._run.used_s
                result = self._batches(system.name, requests)
                if result is not None:
                    seen[system.name] = result
                if self._run.used_s - before_s > system.peer.patience_s:
                    self._slow.add((system.name, work))
        reference = seen.get(self._reference)
        for name, result in seen.items():
            self._runs[name, work].append(RunFigures.of(result))
            if reference is not None:
                self._agreements[name, work].append(agreement(result["outputs"], reference["outputs"]))
        rates = ", ".join(f"{name} {self._runs[name, work][-1].output_tokens_per_s:.0f}" for name in seen)
        self._run.say(f"{self._model} {self._dtype}, {work.name} {work.batch}: {rates}")

    def _batches(self, name: str, batches: Sequence[Requests]) -> dict[str, Any] | None:
        result = None
        for requests in batches:
            if name in self._fleet.running:
                result = self._fleet.run(name, requests)
        return result

    def _row(self, system: ServedSystem, work: Work) -> Row:
        row: Row = {
            "model": self._model,
            "dtype": self._dtype,
            "workload": work.name,
            "batch": work.batch,
            "system": system.name,
        }
        if error := self._fleet.errors.get(system.name):
            return row | {"error": error}
        agreements = self._agreements[system.name, work]
        row |= summary(self._runs[system.name, work])
        row |= {"agreement": statistics.mean(agreements) if agreements else None}
        return row | {"versions": self._fleet.versions[system.name]}


def agreement(outputs: Sequence[Sequence[int]], reference: Sequence[Sequence[int]]) -> float:
    """Return how likely a token is the reference's where all before it are: equal ones / compared ones.

    What follows a sequence's first difference is not compared, for it continues another text.
    """
    equal = compared = 0
    for ours, theirs in zip(outputs, reference, strict=True):
        for own, other in zip(ours, theirs, strict=True):
            compared += 1
            if own != other:
                break
            equal += 1
    return equal / compared


def checked(
    run: Run, systems: Sequence[ServedSystem], works: Sequence[Work], reference: ServedSystem
) -> tuple[list[Row], dict[str, str]]:
    """Compare everybody's tokens with those of ``reference``; return the rows, and who is wrong or failed, and why."""
    rows: list[Row] = []
    wrong: dict[str, str] = {}
    for dtype in sorted({system.check_dtype for system in systems}):
        checking = [system for system in systems if system.check_dtype == dtype]
        group = checking if reference in checking else [*checking, reference]
        seen = Contest(run, group, "check", dtype, CHECK_LIMITS, reference.name).measure(works, 1, run.budget_s)
        rows += seen
        for system in checking:
            own = [row for row in seen if row["system"] == system.name]
            if reason := _why_wrong(own, system, reference.name):
                wrong[system.name] = reason
                for row in own:
                    row["error"] = reason
    return rows, wrong


def measured(
    run: Run, right: Sequence[ServedSystem], limits: Limits, reference: str, works_of: Callable[[str], Sequence[Work]]
) -> list[Row]:
    """Return the rows of ``MODELS`` on the works of each, as far as the time goes; none in a dry run."""
    rows: list[Row] = []
    for model, share in () if run.is_dry else MODELS:
        until_s = run.used_s + share * (run.budget_s - run.used_s)
        if run.is_over or not right:
            rows.append({"model": model, "error": "left out: the time was over, or nobody was right"})
            continue
        rows += Contest(run, right, model, "bf16", limits, reference).measure(works_of(model), run.rounds, until_s)
    return rows


def _why_wrong(rows: Sequence[Row], system: ServedSystem, reference: str) -> str | None:
    """Return why a system is not measured: it failed, or its tokens are others; None if it may be."""
    if errors := [row["error"] for row in rows if "error" in row]:
        return str(errors[0])
    agreements = [row["agreement"] for row in rows]
    if None in agreements:
        return f"there are no tokens of {reference} to compare with"
    share = statistics.mean(agreements)
    return f"wrong tokens: {share:.0%} of them are those of {reference}" if share < system.least_agreement else None
