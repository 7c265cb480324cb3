"""All systems on one model, taking turns."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.engine.figures import Row, RunFigures, summary
from benchmarks.engine.fleet import Fleet
from benchmarks.engine.peers import KV_GIB, PEERS, ROOT
from benchmarks.engine.shapes import DTYPES, MAX_LEN, MODELS_FOLDER, SHAPES
from benchmarks.engine.workload import MAX_NUM_SEQS, WORKLOADS, Case, Workload, poisson_arrivals_s, requests_of

REFERENCE = "transformers"
"""In float32 everybody's greedy tokens are compared with this system's."""
MODEL_TIMEOUT_S = 300
ITEM_BYTES = {"bf16": 2, "f32": 4}


def model_folder(model: str, dtype: str) -> Path:
    """Return the folder of a model, made at its first use."""
    folder = MODELS_FOLDER / f"{model}-{dtype}"
    if not folder.exists():
        MODELS_FOLDER.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "benchmarks.engine.models", str(folder), model, dtype]
        subprocess.run(command, cwd=ROOT, check=True, timeout=MODEL_TIMEOUT_S)
    return folder


class Driver:
    """Starts the systems on one model, each on ``cores``, and gathers rows; ``say`` gets lines of progress."""

    def __init__(
        self, model: str, dtype: str, systems: Sequence[str], cores: list[int], say: Callable[[str], None]
    ) -> None:
        self.model, self.dtype, self._say = model, dtype, say
        self._names = list(systems)
        self._cores = cores
        self._fleet = Fleet(cores, say)
        self._runs: defaultdict[tuple[str, Case], list[RunFigures]] = defaultdict(list)
        self._slow: set[tuple[str, Case]] = set()
        self._bandwidths: list[float] = []

    def measure(self, cases: Sequence[Case], rounds: int) -> Iterator[list[Row]]:
        """Give, after each round, a row for every system and case over the rounds so far; what failed says why.

        In each round every system runs each case once, one system at a time; see ``Peer.patience_s`` for who does not.
        """
        with self._fleet as fleet:
            for name in self._names:
                self._start(name)
            for name in list(fleet.running):
                self._load(name)
            best = self._warm_up(cases)
            arrivals_s = poisson_arrivals_s(best, WORKLOADS["poisson"].num_output) if best else None
            for number in range(rounds):
                self._bandwidths.append(bandwidth_bytes_per_s())
                for case in cases:
                    self._round(case, number, arrivals_s if case.workload.name == "poisson" else None)
                yield [self._row(name, case) for case in cases for name in self._names]

    def _start(self, name: str) -> None:
        peer = PEERS[name]
        if not peer.is_installed:
            self._fleet.errors[name] = f"{peer.folder} is missing: `make bench-engine` makes it"
            return
        self._fleet.start(peer)

    def _load(self, name: str) -> None:
        self._fleet.load(
            name,
            folder=model_folder(self.model, self.dtype),
            dtype=DTYPES[self.dtype],
            num_threads=len(self._cores),
            max_num_seqs=MAX_NUM_SEQS,
            max_len=MAX_LEN,
            kv_memory_bytes=KV_GIB << 30,
        )

    def _warm_up(self, cases: Sequence[Case]) -> float:
        """Run ``shared`` at every batch size once, unmeasured; return the best throughput at the largest."""
        best, shared = 0.0, WORKLOADS["shared"]
        for batch in sorted({case.batch for case in cases}):
            requests = requests_of(Case(shared, batch), SHAPES[self.model].vocab_size, "warm-up")
            runs = [self._fleet.run(name, requests) for name in list(self._fleet.running)]
            best = max((RunFigures.of(run).output_tokens_per_s for run in runs if run is not None), default=0.0)
        return best

    def _round(self, case: Case, number: int, arrivals_s: Sequence[float] | None) -> None:
        requests = requests_of(case, SHAPES[self.model].vocab_size, f"round {number}", arrivals_s)
        seen = {}
        turn = number % len(self._names)
        for name in self._names[turn:] + self._names[:turn]:  # nobody always comes after the same one
            if name in self._fleet.running and (name, case) not in self._slow:
                started_s = time.monotonic()
                run = self._fleet.run(name, requests)
                if run is not None:
                    seen[name] = run
                if time.monotonic() - started_s > PEERS[name].patience_s:
                    self._slow.add((name, case))
        reference = seen[REFERENCE]["outputs"] if self.dtype == "f32" and REFERENCE in seen else None
        for name, run in seen.items():
            self._runs[name, case].append(RunFigures.of(run, reference))
        rates = ", ".join(f"{name} {self._runs[name, case][-1].output_tokens_per_s:.0f}" for name in seen)
        self._say(f"round {number + 1}: {case.workload.name} {case.batch}: {rates}")

    def _row(self, name: str, case: Case) -> Row:
        row: Row = {
            "system": name,
            "model": self.model,
            "dtype": self.dtype,
            "workload": case.workload.name,
            "batch": case.batch,
        }
        if error := self._fleet.errors.get(name):
            return row | {"output_tokens_per_s": None, "ttft_p50_ms": None, "spread": None, "error": error}
        row |= summary(self._runs[name, case]) | {"versions": self._fleet.versions[name]}
        if case.batch == 1 and row["decode_tokens_per_s"]:
            bandwidth = statistics.median(self._bandwidths)
            limit = bandwidth / bytes_per_token(self.model, self.dtype, case.workload)
            row["bandwidth_gb_per_s"] = round(bandwidth / 1e9, 1)
            row["bandwidth_share"] = round(row["decode_tokens_per_s"] / limit, 3)
        return row


def bandwidth_bytes_per_s() -> float:
    """Return the measured rate at which all cores together read memory."""
    command = [sys.executable, "-m", "benchmarks.engine.bandwidth"]
    return float(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=60).stdout)


def bytes_per_token(model: str, dtype: str, workload: Workload) -> float:
    """Return what decoding one sequence must read for a token: all weights of a step, and the cache so far."""
    shape = SHAPES[model]
    context = workload.num_shared + workload.num_own + workload.num_output / 2
    return (shape.num_step_weights + shape.kv_values_per_token * context) * ITEM_BYTES[dtype]
