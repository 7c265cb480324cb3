"""``python -m parrot_mq.scheduler``: a scheduler as a process of its own, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import traceback
from collections.abc import Sequence

from parrot_mq.errors import ConfigError, ParrotError
from parrot_mq.groups import only
from parrot_mq.scheduler.service import serve
from parrot_mq.store import connect
from parrot_mq.store.server import known_url, no_server

USAGE = 2
"""Exit status where starting the same again would not help."""
FAILED = 1


async def _serve(url: str) -> None:
    async with await connect(url) as store:
        await serve(store)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a scheduler until it is told to stop; return the exit status: 0, ``USAGE`` or ``FAILED``."""
    parser = argparse.ArgumentParser(
        prog="python -m parrot_mq.scheduler",
        description="Run a scheduler. Several may run: one leads, another takes over when it ends.",
        epilog="SIGTERM or Ctrl-C drains it. Settings are read from PARROT_MQ_* variables.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--redis-url", help="default: PARROT_MQ_REDIS_URL, else the Redis that `parrot-mq up` started in this folder"
    )
    parser.add_argument("--verbose", action="store_true", help="log more, and show the traceback of an error")
    given = parser.parse_args(arguments)
    logging.basicConfig(
        level=logging.DEBUG if given.verbose else logging.INFO,
        format="%(asctime)s %(levelname).1s %(name)s: %(message)s",
    )
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    try:
        url = known_url(given.redis_url)
        if url is None:
            raise no_server()
        asyncio.run(_serve(url))
    except Exception as error:  # noqa: BLE001 - the process's outermost frame: an error becomes a line and a status
        return _explain(only(error), given.verbose)
    return 0


def _explain(error: BaseException, verbose: bool) -> int:
    """Print what went wrong in one line, and return the exit status."""
    if verbose:
        traceback.print_exception(error)
    text = " ".join(str(error).split())
    print(f"error: {text if isinstance(error, ParrotError) else f'{type(error).__name__}: {text}'}", file=sys.stderr)
    return USAGE if isinstance(error, ConfigError) else FAILED


if __name__ == "__main__":
    sys.exit(main())
