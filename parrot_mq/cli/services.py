"""``parrot-mq scheduler`` and ``parrot-mq engine``: one process each, for a process manager to keep."""

from __future__ import annotations

import os
import sys

import typer

from parrot_mq.cli.console import RedisUrl, existing_redis
from parrot_mq.stack import SCHEDULER
from parrot_mq.store.server import URL_VARIABLE


def scheduler(redis_url: RedisUrl = None) -> None:
    """Run a scheduler. Several may run; one leads, another takes over when it ends. SIGTERM drains it."""
    os.environ[URL_VARIABLE] = existing_redis(redis_url)
    os.execv(SCHEDULER[0], SCHEDULER)


def engine(context: typer.Context) -> None:
    """Run an engine: the same as `python -m parrot_workers`, which explains its options with --help."""
    os.execv(sys.executable, [sys.executable, "-m", "parrot_workers", *context.args])
