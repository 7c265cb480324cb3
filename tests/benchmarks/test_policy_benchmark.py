"""The policy benchmark, at a size at which it takes a second."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.policy.workload import World

ROOT = Path(__file__).parents[2]


def test_as_many_wait_at_any_time_and_nothing_is_overrun() -> None:
    world = World(num_engines=6, num_waiting=300)
    for _ in range(10):
        world.run(100)
        outstanding = sum(load.num_outstanding for load in world.fleet.values())
        assert all(load.num_outstanding <= 2 * 32 for load in world.fleet.values())
        # Members of a group that are done wait for the rest, to be submitted again together.
        done = sum(map(len, world._left.values()))
        assert len(world.ready) + outstanding + done == 300 + 32 * 6
    assert world.num_decisions >= 1000


def test_the_same_seed_decides_the_same() -> None:
    worlds = [World(5, 200, seed=7) for _ in range(2)]
    for world in worlds:
        world.run(500)
    assert worlds[0].now_ms == worlds[1].now_ms
    assert worlds[0].fleet["e1"].outstanding == worlds[1].fleet["e1"].outstanding


def test_the_command_reports_every_size(tmp_path: Path) -> None:
    out = tmp_path / "policy.json"
    command = [
        sys.executable,
        "-m",
        "benchmarks.policy",
        "--json",
        "--decisions",
        "500",
        "--waiting",
        "300",
        "--engines",
    ]
    done = subprocess.run(
        [*command, "3", "12", "--out", str(out)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True, timeout=100,
    )  # fmt: skip
    report = json.loads(done.stdout)
    assert report == json.loads(out.read_text())
    sizes = [(row["num_engines"], row["num_waiting"]) for row in report["rows"]]
    assert sizes == [(3, 300), (12, 300), (12, 3)]
    assert report["rows"][1]["num_decisions"] >= 500
    assert report["growth_with_engines"] > 0
