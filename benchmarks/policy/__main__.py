"""``python -m benchmarks.policy [--json] [--out FILE]``: decisions per second, and how their cost grows."""

from __future__ import annotations

import argparse
import dataclasses
import gc
import os
import platform
import sys
import time
from pathlib import Path

import orjson

from benchmarks.policy.workload import World

WARM_UP = 0.05
"""Part of the decisions that are made before the clock starts: the engines are empty at first."""


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """What was measured: ``us_per_decision`` is everything, from a request that is queued to its end, heartbeats
    included, divided by the requests placed; ``num_plans`` calls of ``decide`` made them.
    """

    num_engines: int
    num_waiting: int
    num_decisions: int
    num_plans: int
    decisions_per_s: float
    us_per_decision: float


def measure(num_engines: int, num_waiting: int, num_decisions: int) -> Row:
    """Run a world of this size."""
    world = World(num_engines, num_waiting)
    world.run(round(WARM_UP * num_decisions) + 32 * num_engines)
    gc.collect()
    gc.freeze()
    before, plans = world.num_decisions, world.num_plans
    start_s = time.process_time()
    world.run(num_decisions)
    took_s = time.process_time() - start_s
    gc.unfreeze()
    made = world.num_decisions - before
    return Row(
        num_engines, num_waiting, made, world.num_plans - plans, round(made / took_s), round(took_s / made * 1e6, 2)
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.policy", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--decisions", type=int, default=1_000_000, help="at the full size (default 1000000)")
    parser.add_argument("--waiting", type=int, default=100_000, help="requests that wait (default 100000)")
    parser.add_argument("--engines", type=int, nargs="+", default=[10, 100, 1000], help="numbers of engines")
    parser.add_argument("--out", type=Path, help="also write the JSON object here")
    args = parser.parse_args()
    sizes = [(n, args.waiting) for n in args.engines] + [(max(args.engines), max(1, args.waiting // 100))]
    full = (max(args.engines), args.waiting)
    rows = []
    for size in sizes:
        rows.append(measure(*size, args.decisions if size == full else args.decisions // 5))
        print(rows[-1], file=sys.stderr)
    cost = {(row.num_engines, row.num_waiting): row.us_per_decision for row in rows}
    report = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, one of {os.cpu_count()} cores, Python {platform.python_version()}",
        "rows": [dataclasses.asdict(row) for row in rows],
        "growth_with_engines": round(cost[full] / cost[min(args.engines), args.waiting], 3),
        "growth_with_waiting": round(cost[full] / cost[sizes[-1]], 3),
    }
    encoded = orjson.dumps(report, option=orjson.OPT_INDENT_2)
    if args.out:
        args.out.write_bytes(encoded + b"\n")
    if args.json:
        print(encoded.decode())
        return
    print("engines  waiting  decisions  decisions/s  us each")
    for row in rows:
        print(
            f"{row.num_engines:7}  {row.num_waiting:7}  {row.num_decisions:9}  {row.decisions_per_s:11.0f}"
            f"  {row.us_per_decision:7.2f}"
        )
    print(f"cost grows {report['growth_with_engines']} times from {min(args.engines)} to {full[0]} engines")


if __name__ == "__main__":
    main()
