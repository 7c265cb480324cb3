"""``python -m benchmarks.engine``: our engine beside its peers; a table, and rows in a JSON file."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from pathlib import Path

from benchmarks.engine.driver import Driver
from benchmarks.engine.figures import Row, merge, table
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
    parser.add_argument(
        "--num-threads", type=int, help="cores for each system (default: all that this process may use)"
    )
    parser.add_argument("--quick", action="store_true", help="s in bf16, shared and unshared, three rounds")
    parser.add_argument("--dry-run", action="store_true", help="one round, tiny, without the peers: does it work?")
    parser.add_argument("--out", type=Path, help="put the rows into this JSON file, in place of older ones")
    args = parser.parse_args(arguments)
    if args.quick:
        args.models, args.dtypes, args.workloads, args.rounds = ["s"], ["bf16"], ["shared", "unshared"], 3
    if args.dry_run:
        args.models, args.dtypes, args.batches, args.rounds = ["tiny"], ["f32"], [1, 8], 1
        args.num_threads = 1
        args.systems = [name for name in args.systems if PEERS[name].folder is None]
    return args


def cpu_name() -> str:
    """Return what the kernel calls the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main() -> None:
    args = parse()
    workloads = {name: WORKLOADS[name].scaled(16 if args.dry_run else 1) for name in args.workloads}
    cases = [
        Case(workloads[name], batch)
        for name in workloads
        for batch in (args.batches if name != "poisson" else [MAX_NUM_SEQS])
    ]
    cores = sorted(os.sched_getaffinity(0))[: args.num_threads]
    machine = f"{cpu_name()}, {len(cores)} cores"
    about = {"date": time.strftime("%Y-%m-%d"), "machine": machine}
    everything: list[Row] = []
    for model in args.models:
        for dtype in args.dtypes:
            driver = Driver(model, dtype, args.systems, cores, lambda line: print(line, file=sys.stderr, flush=True))
            rows: list[Row] = []
            for measured in driver.measure(cases, args.rounds):
                rows = [row | about for row in measured]
                if args.out:  # after each round: whoever stops a long run keeps what there is
                    merge(args.out, rows)
            everything += rows
    print(table(everything))
    print(f"medians of {args.rounds} rounds on {machine}")
    if any("error" in row for row in everything):
        raise SystemExit("a system failed; see the table")


if __name__ == "__main__":
    main()
