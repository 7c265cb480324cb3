"""``parrot-mq scheduler`` and ``engine``, a process each for a process manager to keep; ``bench-engine``, ``simulate``.

The command becomes the process, which knows its own options.
"""

from __future__ import annotations

import os
import sys

import typer

from parrot_mq.cli.console import require
from parrot_mq.stack import SCHEDULER

NAMES = ("scheduler", "engine", "bench-engine", "simulate")


def scheduler(context: typer.Context) -> None:
    """Run a scheduler. Several may run: one leads, another takes over when it ends."""
    os.execv(SCHEDULER[0], [*SCHEDULER, *context.args])


def engine(context: typer.Context) -> None:
    """Run an engine: it takes requests for its model and answers them."""
    os.execv(sys.executable, [sys.executable, "-m", "parrot_workers", *context.args])


def bench_engine(context: typer.Context) -> None:
    """Measure an engine on this machine: prefill, decode, time to first token, memory."""
    require("torch", "worker")
    os.execv(sys.executable, [sys.executable, "-m", "parrot_workers.bench", *context.args])


def simulate(context: typer.Context) -> None:
    """Say which engines a load needs: simulate it on several numbers of them, in virtual time."""
    require("fakeredis", "sim")
    require("lupa", "sim")
    os.execv(sys.executable, [sys.executable, "-m", "parrot_workers.simulation", *context.args])
