"""``python -m parrot_mq.scheduler``: a scheduler as a process of its own, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence

from parrot_mq.entry import explain, start_logging
from parrot_mq.scheduler.service import serve
from parrot_mq.settings import SchedulerSettings
from parrot_mq.store import connect
from parrot_mq.store.server import known_url, no_server


async def _serve(url: str, settings: SchedulerSettings) -> None:
    async with await connect(url) as store:
        await serve(store, settings)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a scheduler until it is told to stop; return the exit status: 0, or that of ``explain``."""
    parser = argparse.ArgumentParser(
        prog="parrot-mq scheduler",
        description="Run a scheduler. Several may run: one leads, another takes over when it ends. "
        "`python -m parrot_mq.scheduler` is the same.",
        epilog="SIGTERM or Ctrl-C drains it. Settings are read from PARROT_MQ_* variables.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--redis-url", help="default: PARROT_MQ_REDIS_URL, else the Redis that `parrot-mq up` started in this folder"
    )
    parser.add_argument(
        "--decision-log",
        metavar="FILE",
        help="write everything that decisions are made from, and the decisions, to this file (the one before it "
        "becomes FILE.1); `parrot-mq replay FILE` makes them again",
    )
    parser.add_argument("--verbose", action="store_true", help="log more, and show the traceback of an error")
    given = parser.parse_args(arguments)
    start_logging(given.verbose)
    try:
        url = known_url(given.redis_url)
        if url is None:
            raise no_server()
        asyncio.run(_serve(url, SchedulerSettings.from_env(decision_log=given.decision_log)))
    except Exception as error:  # noqa: BLE001 - the process's outermost frame: an error becomes a line and a status
        return explain(error, given.verbose)
    return 0


if __name__ == "__main__":
    sys.exit(main())
