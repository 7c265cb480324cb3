"""``python -m benchmarks.gpu NAME``: a benchmark of the GPU path, or ``all``; a table, and a file of results.

Outside an installed project: with ``PYTHONPATH=.:workers:kernels``.
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys

NAMES = ("kernels", "cost_model", "engine", "applications")
LIMIT_S = 480.0
"""For each benchmark of ``all``; what takes longer is ended."""
ROUNDS, DRY_ROUNDS = 7, 1


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("name", choices=(*NAMES, "all"))
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--rounds", type=int, help="medians over so many at most; systems take turns (default 7)")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="toy sizes on a CPU, Triton's kernels interpreted, nothing written: does it work, and is it right?",
    )
    args = parser.parse_args(arguments)
    args.rounds = args.rounds or (DRY_ROUNDS if args.dry_run else ROUNDS)
    return args


def run_all(args: argparse.Namespace) -> None:
    """Run every benchmark in a process of its own: none inherits memory, or a device that another one broke."""
    failed = []
    for name in NAMES:
        command = [sys.executable, "-m", "benchmarks.gpu", name, "--device", args.device, "--rounds", str(args.rounds)]
        try:
            subprocess.run([*command, *["--dry-run"] * args.dry_run], check=True, timeout=LIMIT_S)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            failed.append(f"{name}: {error}")
    if failed:
        raise SystemExit("\n".join(failed))


def run_one(args: argparse.Namespace) -> None:
    if args.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton
        args.device = "cpu"
    import torch

    from benchmarks.gpu.about import about
    from benchmarks.gpu.run import Run

    if not args.dry_run and not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU: this measures one. --dry-run tries everything out on a CPU")
    device = torch.device(args.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    run = Run(device, args.dry_run, args.rounds)
    report = importlib.import_module(f"benchmarks.gpu.{args.name}").measure(run)
    print(report.text())
    if args.dry_run:
        print(f"{args.name}: dry run in {run.used_s:.0f} s, nothing written")
    else:
        print(f"{args.name}: {run.used_s:.0f} s; written to {report.write(about(device))}")
    if any("error" in row for row in report.rows):
        raise SystemExit(f"{args.name}: somebody failed, or was left out; see the table")


def main() -> None:
    args = parse()
    if args.name == "all":
        run_all(args)
    else:
        run_one(args)


if __name__ == "__main__":
    main()
