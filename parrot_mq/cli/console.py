"""Where the command writes: results to standard output, everything else to standard error."""

from __future__ import annotations

import importlib.util
import sys
from typing import Annotated

import typer
from rich.console import Console

from parrot_mq.errors import ConfigError
from parrot_mq.store.server import known_url, no_server

RedisUrl = Annotated[
    str | None,
    typer.Option("--redis-url", help="Address of a Redis: redis://HOST:PORT/DB.", envvar="PARROT_MQ_REDIS_URL"),
]


_PIPE_COLUMNS = 240


def out() -> Console:
    """Return a console on standard output (made anew, so that a redirected one is seen). A pipe folds no tables."""
    return Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else _PIPE_COLUMNS)


def err() -> Console:
    """Return a console on standard error."""
    return Console(file=sys.stderr, highlight=False)


def existing_redis(url: str | None) -> str:
    """Return the Redis to talk to: the one given, or the private one that ``parrot-mq up`` started in this folder."""
    if known := known_url(url):
        return known
    raise ConfigError(f"{no_server()}; `parrot-mq up` starts one for this folder")


def require(module: str, extra: str) -> None:
    """Raise ``ConfigError`` with the line that installs it if ``module`` is missing; imports nothing."""
    if importlib.util.find_spec(module) is None:
        raise ConfigError(f"{module} is not installed: pip install 'parrot-mq[{extra}]'")
