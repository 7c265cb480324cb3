"""``python -m benchmarks.apps NAME|all``: the reference's experiments, ours beside client-side orchestration."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import itertools
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from benchmarks.apps.bench import REAL, Point
from benchmarks.apps.experiments import EXPERIMENTS
from benchmarks.apps.parallel import run_all
from benchmarks.apps.plan import Book, Order, orders
from benchmarks.apps.rows import Row, merge, with_ratios
from benchmarks.apps.systems import PAGES, REFERENCE_BASELINES, REFERENCE_LATENCY, SHARED_ATTENTION, SYSTEMS

RESULTS = Path(__file__).parents[1] / "results" / "apps.json"
NOT_REAL = (PAGES.label, REFERENCE_LATENCY.label, *(system.label for system in REFERENCE_BASELINES), SHARED_ATTENTION)
"""The CPU's kernel has no way to read a shared prefix once for each request, and its engine counts sequences."""


def main() -> None:
    args = _parser().parse_args()
    experiments = EXPERIMENTS.values() if args.name == "all" else [EXPERIMENTS[args.name]]
    repeats = 1 if args.quick else args.repeats
    for mode in ("real",) if args.real else ("simulated",) if args.simulated else ("simulated", "real"):
        chosen = orders(
            experiments,
            repeats=repeats,
            is_chosen=functools.partial(_is_chosen, mode, args),
            systems=args.systems,
            excluded=NOT_REAL if mode == "real" else (),
            is_real=mode == "real",
        )
        if mode == "simulated":
            run_simulated_orders(chosen, args)
        else:
            run_real_orders(chosen, args)


def _is_chosen(mode: str, args: argparse.Namespace, point: Point) -> bool:
    """Whether a point is run: those that are named; else all in simulation, the quick ones and their like for real."""
    if args.points:
        return point.label in args.points
    return point.quick or (not args.quick and (mode == "simulated" or bool(point.dtype)))


def run_simulated_orders(chosen: list[Order], args: argparse.Namespace) -> None:
    book = Book(chosen, "simulated", {"date": time.strftime("%Y-%m-%d")}, args.timelines)
    for order, result, took_s in run_all([(order, _values(order, args)) for order in chosen], args.jobs):
        _say(order, result.outcome.seconds, took_s)
        _keep(book.record(order, result), args)


def run_real_orders(chosen: list[Order], args: argparse.Namespace) -> None:
    from benchmarks.apps.real import Machine, description

    about = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": description(),
        "scale": f"1/{REAL.tokens} of every length, 1/{REAL.work} of the documents and users",
        "network": args.network,
    }

    book = Book(chosen, "real", about, args.timelines)

    async def measure(of_point: Iterable[Order]) -> None:
        async with contextlib.AsyncExitStack() as stack:
            machine = Machine(stack, args.model, args.num_threads, args.network)
            for order in of_point:
                began_s = time.perf_counter()
                dtype = order.point.dtype or args.dtype
                values = _values(order, args)
                result = await machine.run(order.experiment, values, order.system, order.repeat, dtype)
                _say(order, result.outcome.seconds, time.perf_counter() - began_s)
                _keep([row | {"model": f"{args.model} {dtype}"} for row in book.record(order, result)], args)

    # The engines of all points at once would fill the memory.
    for _, of_point in itertools.groupby(chosen, lambda order: (order.experiment.name, order.point.label)):
        asyncio.run(measure(of_point))


def _values(order: Order, args: argparse.Namespace) -> dict[str, object]:
    return order.point.values | (dict(order.experiment.quick_values) if args.quick else {})


def _keep(rows: list[Row], args: argparse.Namespace) -> None:
    """Write and print the rows of a point that is done."""
    if rows and args.out:
        merge(args.out, rows)
    for row in with_ratios(rows):
        print(line(row), flush=True)


def _say(order: Order, seconds: float, took_s: float) -> None:
    print(
        f"{order.experiment.name} {order.point.label} {order.repeat}: {order.system.label} {seconds:.3f} s"
        f" (run in {took_s:.1f} s)",
        file=sys.stderr,
        flush=True,
    )


def line(row: Row) -> str:
    """Return a row as a line to be read in a terminal."""
    name = row["system"] + (f" -{row['feature_off']}" if row["feature_off"] else "")
    ratio = f"{row['ratio_to_ours']:6.2f}" if row["ratio_to_ours"] else "     -"
    return (
        f"{row['mode']:9} {row['experiment']:17} {row['point']:22} {name:30} {row['seconds_median']:9.3f} s"
        f"  spread {row['spread']:4.0%}  x {ratio}  same {row['same_outputs']}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.apps", description=__doc__)
    parser.add_argument("name", choices=[*EXPERIMENTS, "all"])
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--real", action="store_true", help="only on this machine's CPU, scaled down")
    mode.add_argument("--simulated", action="store_true", help="only in virtual time, at full scale")
    parser.add_argument("--quick", action="store_true", help="one repeat of one point an experiment, made smaller")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--systems", nargs="+", default=[], choices=[*SYSTEMS], metavar="SYSTEM", help="only these, and ours"
    )
    parser.add_argument("--points", nargs="+", default=[], help="only these, by their labels")
    parser.add_argument("--out", type=Path, help=f"merge the rows into this file, such as {RESULTS.name}")
    parser.add_argument("--timelines", type=Path, metavar="FOLDER", help="write each call's life in first repeats")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--jobs", type=int, default=cores, help="processes that simulate at once; default: the cores")
    real = parser.add_argument_group("real runs")
    real.add_argument("--model", default="s", help="of the engine benchmark")
    real.add_argument("--dtype", default="bf16")
    real.add_argument("--num-threads", type=int, default=max(1, cores - 1))
    real.add_argument("--network", type=float, default=1.0, help="0: the client is beside the service")
    return parser


if __name__ == "__main__":
    main()
