"""Systems in processes of their own, of which one computes at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.engine.process import Program, SystemFailed, SystemProcess
from benchmarks.engine.workload import Requests


class Fleet:
    """Starts, loads, runs and ends systems, each on ``cores``; ``say`` gets lines of progress.

    A system that fails is out from then on: its processes are ended, and ``errors`` says why.
    """

    def __init__(self, cores: list[int], say: Callable[[str], None]) -> None:
        self._cores, self._say = cores, say
        self.running: dict[str, SystemProcess] = {}
        self.versions: dict[str, dict[str, str]] = {}
        self.errors: dict[str, str] = {}

    def __enter__(self) -> Self:
        self._logs = tempfile.TemporaryDirectory(prefix="bench-engine-")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.running.values():
            process.close()
        self._logs.cleanup()

    def start(self, program: Program) -> None:
        """Start the process of a system."""
        self.running[program.name] = SystemProcess(program, self._cores, Path(self._logs.name) / f"{program.name}.log")

    def load(self, name: str, **setup: Any) -> None:
        """Have a system that was started load what ``serve.Setup`` says."""
        try:
            self.versions[name] = self.running[name].load(**setup)
        except SystemFailed as error:
            self.fail(name, str(error))
        else:
            self._say(f"{name}: {self.versions[name]}")

    def run(self, name: str, requests: Requests) -> dict[str, Any] | None:
        """Return what a system that runs saw, None if it failed."""
        try:
            return self.running[name].run(requests)
        except SystemFailed as error:
            self.fail(name, str(error))
            return None

    def fail(self, name: str, reason: str) -> None:
        """Put a system out."""
        self.errors[name] = reason
        self._say(f"{name} failed: {reason}")
        self.running.pop(name).close()
