"""Where the command writes: results to standard output, everything else to standard error."""

from __future__ import annotations

import enum
import importlib.util
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from parrot_mq.errors import ConfigError
from parrot_mq.store.server import URL_VARIABLE, known_url

RedisUrl = Annotated[
    str | None,
    typer.Option(
        "--redis-url",
        help="Address of a Redis: redis://HOST:PORT/DB, rediss://..., unix:///path. Without it: the one that "
        "`parrot-mq up` runs for this folder.",
        envvar=URL_VARIABLE,
    ),
]


class EngineKind(enum.StrEnum):
    """The kinds of engines that can be started."""

    TORCH = "torch"
    SIM = "sim"


_PIPE_COLUMNS = 240


def out() -> Console:
    """Return a console on standard output (made anew, so that a redirected one is seen). A pipe folds no tables."""
    return Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else _PIPE_COLUMNS)


def err() -> Console:
    """Return a console on standard error."""
    return Console(file=sys.stderr, highlight=False)


def literal(text: str) -> str:
    """Return Rich markup that shows ``text`` as it is, but control characters, which a value may hold, as a sign."""
    return escape("".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in text))


def existing_redis(url: str | None) -> str:
    """Return the Redis to talk to: the one given, or the private one that ``parrot-mq up`` started in this folder."""
    if known := known_url(url):
        return known
    raise ConfigError(
        "no Redis runs for this folder: start one with `parrot-mq up`, "
        f"or give the address of one with --redis-url redis://HOST:PORT or {URL_VARIABLE}"
    )


def require(module: str, extra: str) -> None:
    """Raise ``ConfigError`` with the line that installs it if ``module`` is missing; imports nothing."""
    if importlib.util.find_spec(module) is None:
        raise ConfigError(f"{module} is not installed: pip install 'parrot-mq[{extra}]'")
