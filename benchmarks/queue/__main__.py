"""``python -m benchmarks.queue [--json]``: the table, or one JSON object with an object per system."""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import orjson
import redis

from benchmarks.queue.figures import FIELDS, Figures
from benchmarks.queue.workload import Workload
from parrot_mq.store.server import RedisServer

ROOT = Path(__file__).parents[2]
PEERS_PYTHON = ROOT / ".venv-bench" / "bin" / "python"
SYSTEM_TIMEOUT_S = 240
MAX_TRIES = 3
"""A peer loses a job now and then: its round is then run again, and the report says so."""
TASKIQ_CHECK_S = "0.005"
"""taskiq polls for a result every 0.2 s by default; this is the interval at which it did best here."""


def commands(work: Workload, peers_python: str) -> dict[str, list[str]]:
    """Return the driver of each system; ``{url}`` stands for Redis' address."""
    full = orjson.dumps(dataclasses.asdict(work)).decode()
    slow = orjson.dumps(dataclasses.asdict(work.scaled(0.1))).decode()
    systems = "benchmarks.queue.systems"
    return {
        "parrot_mq": [sys.executable, "-m", f"{systems}.parrot_system", "{url}", full],
        "arq_poll_0.5": [sys.executable, "-m", f"{systems}.arq_system", "{url}", "0.5", slow],
        "arq_poll_0.01": [sys.executable, "-m", f"{systems}.arq_system", "{url}", "0.01", full],
        "taskiq": [peers_python, "-m", f"{systems}.taskiq_system", "{url}", TASKIQ_CHECK_S, full],
    }


def run_system(command: list[str], url: str) -> Figures:
    """Run one driver on an empty Redis and return its figures. Raises ``RoundFailed``."""
    with redis.Redis.from_url(url) as client:
        client.flushall()
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "kernels", ROOT / "workers")))}
    try:
        done = subprocess.run(
            [part.replace("{url}", url) for part in command],
            cwd=ROOT,
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SYSTEM_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise RoundFailed(f"{' '.join(command[1:3])} took longer than {SYSTEM_TIMEOUT_S} s") from None
    if done.returncode != 0:
        raise RoundFailed(f"{' '.join(command[1:3])} failed with {done.returncode}:\n{done.stderr[-3000:]}")
    return Figures(**orjson.loads(done.stdout.splitlines()[-1]))


class RoundFailed(Exception):
    """A driver ended without figures."""


def spread(rounds: list[Figures], field: str) -> str:
    """Return median, minimum and maximum of a figure."""
    values = [getattr(r, field) for r in rounds]
    return f"{getattr(Figures.median(rounds), field):.2f} ({min(values):.2f}-{max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.queue", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--jobs", type=int, default=10_000, help="no-op jobs for the rate (default 10000)")
    parser.add_argument("--rounds", type=int, default=3, help="alternating rounds; medians are printed (default 3)")
    parser.add_argument("--redis-url", default="", help="an EMPTY Redis to use, flushed; default: a private one")
    parser.add_argument("--peers-python", default=str(PEERS_PYTHON), help="the environment with taskiq-redis")
    parser.add_argument("--out", type=Path, help="also write every round, with what the machine was")
    args = parser.parse_args()
    if not Path(args.peers_python).exists():
        raise SystemExit(f"{args.peers_python} does not exist: `make bench-queue` makes the peers' environment")

    systems = commands(Workload(num_jobs=args.jobs), args.peers_python)
    rounds: defaultdict[str, list[Figures]] = defaultdict(list)
    failures: list[str] = []

    def measure(url: str) -> None:
        for number in range(args.rounds):
            for name, command in systems.items():
                while len(rounds[name]) <= number:
                    try:
                        rounds[name].append(run_system(command, url))
                    except RoundFailed as error:
                        failures.append(f"round {number + 1}: {name}: {error}")
                        print(failures[-1], file=sys.stderr)
                        if name == "parrot_mq" or len(failures) >= MAX_TRIES:
                            raise SystemExit("a round failed too often") from None
                print(f"round {number + 1}: {name}: {rounds[name][-1]}", file=sys.stderr)

    if args.redis_url:
        measure(args.redis_url)
    else:
        with tempfile.TemporaryDirectory() as folder, RedisServer(Path(folder)) as server:
            measure(server.url)

    medians = {name: Figures.median(results) for name, results in rounds.items()}
    if args.out:
        report = {
            "date": time.strftime("%Y-%m-%d"),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
            "failed_rounds": [failure.splitlines()[0] for failure in failures],
            "rounds": {name: [dataclasses.asdict(r) for r in results] for name, results in rounds.items()},
            "medians": {name: dataclasses.asdict(figures) for name, figures in medians.items()},
        }
        args.out.write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2) + b"\n")
    if args.json:
        print(orjson.dumps({name: dataclasses.asdict(figures) for name, figures in medians.items()}).decode())
        return
    width = max(map(len, systems))
    print(" " * width, *(f"{field:>24}" for field in FIELDS))
    for name, results in rounds.items():
        print(f"{name:{width}}", *(f"{spread(results, field):>24}" for field in FIELDS))


if __name__ == "__main__":
    main()
