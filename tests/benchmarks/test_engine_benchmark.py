"""The engine benchmark: prompts, rows, and a whole run with the systems that need no environment of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.engine.driver import Driver
from benchmarks.engine.figures import RunFigures, merge, summary, table
from benchmarks.engine.peers import TRANSFORMERS_PATIENCE_S
from benchmarks.engine.report import markdown
from benchmarks.engine.serve import Emit, run
from benchmarks.engine.workload import WORKLOADS, Case, Requests, poisson_arrivals_s, requests_of

ROOT = Path(__file__).parents[2]
OWN_SYSTEMS = {"parrot_mq", "transformers", "transformers_cb"}


def test_prompts_share_what_they_shall_and_nothing_else() -> None:
    requests = requests_of(Case(WORKLOADS["shared"], 8), 4096, "round 1")
    assert requests.prefix == requests.prompts[0][:192]
    assert all(prompt[:192] == requests.prefix and len(prompt) == 256 for prompt in requests.prompts)
    assert len({tuple(prompt[192:200]) for prompt in requests.prompts}) == 8
    assert requests == requests_of(Case(WORKLOADS["shared"], 8), 4096, "round 1")
    fresh = requests_of(Case(WORKLOADS["shared"], 8), 4096, "round 2")
    assert not {tuple(prompt[:8]) for prompt in fresh.prompts} & {tuple(prompt[:8]) for prompt in requests.prompts}
    unshared = requests_of(Case(WORKLOADS["unshared"], 8), 4096, "round 1")
    assert unshared.prefix not in unshared.prompts


def test_arrivals_are_the_same_for_everybody_and_come_at_the_rate_that_was_asked() -> None:
    arrivals_s = poisson_arrivals_s(2000.0, 64)
    assert arrivals_s == poisson_arrivals_s(2000.0, 64)
    assert arrivals_s == sorted(arrivals_s)
    rate = len(arrivals_s) / arrivals_s[-1]
    assert rate == pytest.approx(0.65 * 2000 / 64, rel=0.3)


class CountingSystem:
    """Gives each waiting request a token a step: its number."""

    def __init__(self) -> None:
        self.warmed: list[list[int]] = []
        self._missing: dict[int, int] = {}
        self.most_at_once = 0

    def describe(self) -> dict[str, str]:
        return {}

    def warm(self, prefix: list[int]) -> None:
        self.warmed.append(prefix)

    def add(self, number: int, prompt: list[int], num_tokens: int) -> None:
        self._missing[number] = num_tokens

    def step(self, emit: Emit) -> None:
        self.most_at_once = max(self.most_at_once, len(self._missing))
        for number in list(self._missing):
            emit(number, [number])
            self._missing[number] -= 1
            if not self._missing[number]:
                del self._missing[number]


def test_a_run_hands_requests_over_when_they_arrive() -> None:
    system = CountingSystem()
    seen = run(system, [7, 8], [[1], [2], [3]], [0.0, 0.0, 0.05], 4)
    assert system.warmed == [[7, 8]]
    assert system.most_at_once == 2
    assert seen["outputs"] == [[0] * 4, [1] * 4, [2] * 4]
    assert seen["wall_s"] >= 0.05
    assert all(0 <= ttft_s <= seen["wall_s"] for ttft_s in seen["ttft_s"])


def test_rows_take_the_place_of_older_ones(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    keys = {"system": "parrot_mq", "model": "s", "dtype": "bf16", "workload": "shared"}
    runs = [RunFigures(rate, 5.0, 6.0, None) for rate in (90.0, 100.0, 110.0)]
    row = keys | {"batch": 8} | summary(runs)
    assert (row["output_tokens_per_s"], row["spread"], row["rounds"]) == (100.0, 0.2, 3)
    merge(path, [row, keys | {"batch": 1, "output_tokens_per_s": 1.0}])
    merge(path, [keys | {"batch": 1, "output_tokens_per_s": 2.0}])
    assert [(row["batch"], row["output_tokens_per_s"]) for row in json.loads(path.read_bytes())] == [(1, 2.0), (8, 100)]


def test_a_system_that_failed_is_in_the_table() -> None:
    keys = {"model": "s", "dtype": "bf16", "workload": "shared", "batch": 8}
    good = {"system": "parrot_mq"} | keys | summary([RunFigures(100.0, 5.0, 6.0, 120.0, 1.0)])
    bad = {"system": "llama_cpp", "output_tokens_per_s": None, "error": "it did not load"} | keys
    text = table([good, bad])
    assert "failed: it did not load" in text
    assert "parrot_mq x 1.00" in text


def test_the_report_has_a_line_for_each_case() -> None:
    keys = {"model": "s", "dtype": "bf16", "workload": "shared", "batch": 8}
    ours = {"system": "parrot_mq"} | keys | summary([RunFigures(rate, 5.0, 6.0, None) for rate in (90.0, 100.0, 110.0)])
    peer = {"system": "vllm_cpu"} | keys | summary([RunFigures(40.0, 5.0, 6.0, None)])
    failed = {"system": "llama_cpp", "output_tokens_per_s": None, "error": "it did not load"} | keys
    lines = markdown([peer, failed, ours]).splitlines()
    assert len(lines) == 3
    assert lines[2] == "| s bf16, shared, 8 | 100 ± 10% | 5 ms | 2.50 | - | - | - |"


def test_what_takes_transformers_too_long_it_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        def __init__(self, seconds: float) -> None:
            self.seconds, self.num_runs = seconds, 0

        def run(self, requests: Requests) -> dict[str, object]:
            self.num_runs += 1
            clock.now_s += self.seconds
            outputs = [[0] * requests.num_tokens for _ in requests.prompts]
            return {"outputs": outputs, "wall_s": self.seconds, "ttft_s": [0.1], "decode_tokens_per_s": None}

        def close(self) -> None:
            pass

    class Clock:
        now_s = 0.0

        def monotonic(self) -> float:
            return self.now_s

    clock = Clock()
    monkeypatch.setattr("benchmarks.engine.driver.time", clock)
    systems = {"parrot_mq": Fake(20.0), "transformers": Fake(TRANSFORMERS_PATIENCE_S + 1)}
    driver = Driver("tiny", "bf16", list(systems), [0], print)
    monkeypatch.setattr(driver, "_start", lambda name: driver._fleet.running.update({name: systems[name]}))
    monkeypatch.setattr(driver, "_load", lambda name: driver._fleet.versions.update({name: {}}))
    monkeypatch.setattr("benchmarks.engine.driver.bandwidth_bytes_per_s", lambda: 1e9)
    rows = list(driver.measure([Case(WORKLOADS["shared"], 1)], 3))[-1]
    assert {row["system"]: row["rounds"] for row in rows} == {"parrot_mq": 3, "transformers": 1}
    assert [system.num_runs for system in systems.values()] == [1 + 3, 1 + 1]  # warm-up first
    assert "one round" in table(rows)


def test_a_whole_run_in_small(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    path = os.pathsep.join(str(ROOT / part) for part in ("", "kernels", "workers"))
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.engine", "--dry-run", "--out", str(out)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads(out.read_bytes())
    cases = {(name, batch) for name in ("shared", "unshared", "long_prefix") for batch in (1, 8)} | {("poisson", 32)}
    assert {(row["system"], row["workload"], row["batch"]) for row in rows} == {
        (system, *case) for system in OWN_SYSTEMS for case in cases
    }
    assert {(row["model"], row["dtype"], row["rounds"]) for row in rows} == {("tiny", "f32", 1)}
    assert all(row["output_tokens_per_s"] > 0 and row["ttft_p50_ms"] > 0 and row["spread"] == 0 for row in rows)
    assert {row["same"] for row in rows} == {1.0}  # everybody's greedy tokens are transformers'
