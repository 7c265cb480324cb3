"""How a process of parrot_mq begins and ends: its log on standard error, its error as one line and a status."""

from __future__ import annotations

import logging
import re
import sys
import traceback

from parrot_mq.errors import ConfigError, ParrotError

USAGE = 2
"""Exit status where starting the same again would not help."""
FAILED = 1
LOG_FORMAT = "%(asctime)s %(levelname).1s %(name)s: %(message)s"
LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d (?P<time>\d\d:\d\d:\d\d),\d{3} (?P<level>[A-Z]) [\w.]+: (?P<message>.*)")
"""Matches a line in ``LOG_FORMAT``; ``level`` is the initial of the level's name."""


def start_logging(verbose: bool) -> None:
    """Log to standard error: what an operator wants to know, all of it with ``verbose``."""
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, format=LOG_FORMAT)
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def explain(error: BaseException, verbose: bool) -> int:
    """Print what went wrong in one line (``verbose``: and where); return the exit status, ``USAGE`` or ``FAILED``."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if verbose:
        traceback.print_exception(error)
    text = " ".join(str(error).split())
    print(f"error: {text if isinstance(error, ParrotError) else f'{type(error).__name__}: {text}'}", file=sys.stderr)
    return USAGE if isinstance(error, ConfigError) else FAILED
