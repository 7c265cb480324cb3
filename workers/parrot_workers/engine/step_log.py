"""The statistics of every step as lines of JSON."""

from __future__ import annotations

import time
from pathlib import Path

import orjson

from parrot_mq.errors import ConfigError
from parrot_workers.engine.step_stats import StepStats


class StepLog:
    """Appends a line for each step to ``path``: the time in seconds since the epoch, and ``StepStats.as_dict``.

    The file is opened for each line, so that it may be moved away at any time. Raises ConfigError if it cannot be.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        try:
            self._append(b"")
        except OSError as error:
            raise ConfigError(f"the step log {str(path)!r} cannot be written: {error.strerror}") from error

    def __call__(self, stats: StepStats) -> None:
        """Write one line."""
        self._append(orjson.dumps({"time_s": round(time.time(), 6)} | stats.as_dict()) + b"\n")

    def _append(self, line: bytes) -> None:
        with self._path.open("ab") as file:
            file.write(line)
