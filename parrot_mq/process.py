"""A child process that is kept running: started, restarted with a back-off, its output read line by line, ended."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import enum
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence

from parrot_mq.entry import USAGE
from parrot_mq.errors import ParrotError
from parrot_mq.store.tether import tethered

STOP_TIMEOUT_S = 10.0
"""How long a process may take to end, unless its owner knows better."""
MIN_BACKOFF_S = 0.5
MAX_BACKOFF_S = 15.0
SETTLED_S = 30.0
"""A process that ran this long before it crashed starts its back-off from the beginning."""
_LAST_WORDS_S = 1.0
"""How long the output of an ended process is waited for; a process of its own may hold it open."""
_KEPT_LINES = 30
_LINE_LIMIT_BYTES = 1 << 16


class ChildFailed(ParrotError):
    """A child process ended for good; the message holds its last lines."""


class ChildState(enum.StrEnum):
    """Life of a child process."""

    STARTING = "starting"
    RUNNING = "running"
    CRASHED = "crashed"
    """It is started again after its back-off."""
    STOPPED = "stopped"


@dataclasses.dataclass(frozen=True, slots=True)
class Restarts:
    """How often a crashed process comes back, and how long it waits: doubling from ``min_s`` to ``max_s`` seconds."""

    limit: int | None = None
    """None: as often as it takes."""
    min_s: float = MIN_BACKOFF_S
    max_s: float = MAX_BACKOFF_S

    def delay_s(self, crashes: int) -> float:
        """Seconds to wait after so many crashes in a row."""
        return float(min(self.max_s, self.min_s * 2 ** (crashes - 1)))


class Child:
    """One process and those that come after it. ``run`` owns it; ``on_line`` gets its output, ``on_state`` its life.

    ``environment`` is added to ours. A process that is told to end is forced after ``stop_timeout_s`` seconds.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        restarts: Restarts | None = None,
        stop_timeout_s: float = STOP_TIMEOUT_S,
        on_line: Callable[[str, str], None] = lambda name, line: None,
        on_state: Callable[[str, ChildState, str], None] = lambda name, state, detail: None,
    ) -> None:
        self.name = name
        self.command = tuple(command)
        self._environment = dict(environment or {})
        self.stop_timeout_s = stop_timeout_s
        self.last_lines: collections.deque[str] = collections.deque(maxlen=_KEPT_LINES)
        self._restarts = restarts or Restarts()
        self._on_line = on_line
        self._on_state = on_state
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """The process id, None while there is no process."""
        return self._process.pid if self._process is not None else None

    async def run(self) -> None:
        """Keep the process running until this is cancelled; then stop it and wait for its end.

        Raises ``ChildFailed`` when it was started wrongly, or crashed more often than it may.
        """
        crashes = 0
        while True:
            started_s = time.monotonic()
            status = await self._run_once()
            if time.monotonic() - started_s > SETTLED_S:
                crashes = 0
            crashes += 1
            limit = self._restarts.limit
            if status == USAGE or (limit is not None and crashes > limit):
                self._on_state(self.name, ChildState.STOPPED, f"ended with status {status}")
                raise ChildFailed(f"{self.name} ended with status {status}: {self._tail()}")
            delay_s = self._restarts.delay_s(crashes)
            self._on_state(self.name, ChildState.CRASHED, f"ended with {_ending(status)}, again in {delay_s:g} s")
            await asyncio.sleep(delay_s)

    async def _run_once(self) -> int:
        self._on_state(self.name, ChildState.STARTING, "")
        process = self._process = await asyncio.create_subprocess_exec(
            *tethered(self.command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=os.environ | self._environment,
            limit=_LINE_LIMIT_BYTES,
            start_new_session=True,  # Ctrl-C in the terminal reaches the parent, which ends its children in order
        )
        self._on_state(self.name, ChildState.RUNNING, f"pid {process.pid}")
        try:
            async with asyncio.TaskGroup() as tasks:
                reader = tasks.create_task(self._read(process))
                status = await process.wait()
                await asyncio.wait([reader], timeout=_LAST_WORDS_S)
                reader.cancel()
                return status
        finally:
            try:
                if process.returncode is None:
                    await self._end(process)
            finally:
                self._process = None

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        """Ask the process to drain and end, read its last words; force it after ``stop_timeout_s``."""
        self.terminate()
        try:
            async with asyncio.timeout(self.stop_timeout_s):
                await asyncio.gather(process.wait(), self._read(process))
        except (TimeoutError, asyncio.CancelledError) as error:
            self.kill()
            await process.wait()
            if isinstance(error, asyncio.CancelledError):
                raise

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:  # longer than the limit: what is buffered is dropped, the rest of the line is read
                continue
            if not line:
                return
            text = line.decode(errors="replace").rstrip()
            self.last_lines.append(text)
            self._on_line(self.name, text)

    def terminate(self) -> None:
        """Ask the process to end (SIGTERM). Those of parrot_mq drain at the first time, and hurry at the second."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the process at once (SIGKILL); ``run`` sees a crash."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    def _tail(self) -> str:
        lines = [line for line in self.last_lines if line.strip()]
        return lines[-1].removeprefix("error: ") if lines else "it printed nothing"


def _ending(status: int) -> str:
    return f"status {status}" if status >= 0 else signal.Signals(-status).name
