"""``python -m benchmarks.engine``: our engine beside its peers; a table, and rows in a JSON file."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from pathlib import Path

from benchmarks.engine.driver import Driver, add_bandwidth_share, bandwidth_bytes_per_s
from benchmarks.engine.figures import merge, table
from benchmarks.engine.peers import PEERS
from benchmarks.engine.shapes import DTYPES, SHAPES
from benchmarks.engine.workload import BATCHES, MAX_NUM_SEQS, WORKLOADS, Case


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=__doc__)
    parser.add_argument("--systems", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=["s", "l"])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--batches", nargs="+", type=int, choices=BATCHES, default=list(BATCHES))
    parser.add_argument("--rounds", type=int, default=5, help="medians over so many; systems take turns (default 5)")
    parser.add_argument("--quick", action="store_true", help="s in bf16, shared and unshared, three rounds")
    parser.add_argument("--out", type=Path, help="put the rows into this JSON file, in place of older ones")
    args = parser.parse_args(arguments)
    if args.quick:
        args.models, args.dtypes, args.workloads, args.rounds = ["s"], ["bf16"], ["shared", "unshared"], 3
    return args


def main() -> None:
    args = parse()
    cases = [
        Case(WORKLOADS[name], batch)
        for name in args.workloads
        for batch in (args.batches if name != "poisson" else [MAX_NUM_SEQS])
    ]
    machine = f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}"
    about = {"date": time.strftime("%Y-%m-%d"), "machine": machine}
    bandwidth = bandwidth_bytes_per_s()
    everything = []
    for model in args.models:
        for dtype in args.dtypes:
            driver = Driver(model, dtype, args.systems, lambda line: print(line, file=sys.stderr, flush=True))
            rows = [row | about for row in driver.measure(cases, args.rounds)]
            add_bandwidth_share(rows, bandwidth)
            everything += rows
            if args.out:
                merge(args.out, rows)
    print(table(everything))
    print(f"memory is read at {bandwidth / 1e9:.1f} GB/s; medians of {args.rounds} rounds")
    if any("error" in row for row in everything):
        raise SystemExit("a system failed; see the table")


if __name__ == "__main__":
    main()
