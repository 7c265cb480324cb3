"""A system as the driver sees it: a process group that answers orders, and stands still while others are measured."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import queue
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any, Protocol

import orjson

from benchmarks.engine.peers import ROOT
from benchmarks.engine.workload import Requests
from parrot_mq.store.tether import tethered

LOAD_TIMEOUT_S = 600.0
RUN_TIMEOUT_S = 900.0
STOP_TIMEOUT_S = 10.0


class Program(Protocol):
    """What a system is: a name, and how to start it to compute on some cores."""

    @property
    def name(self) -> str: ...

    @property
    def command(self) -> list[str]: ...

    def environ(self, cores: list[int]) -> dict[str, str]: ...


class SystemFailed(Exception):
    """A system did not load, raised, ended, or took too long."""


class SystemProcess:
    """One running system. It is stopped (SIGSTOP) but for the length of an order, so that idle ones take no time."""

    def __init__(self, program: Program, cores: list[int], log: Path) -> None:
        self.name = program.name
        self._log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                tethered(program.command),
                cwd=ROOT,
                env=program.environ(cores),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                process_group=0,  # of our session: should we die, the kernel wakes and ends those that are stopped
            )
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def load(self, **setup: Any) -> dict[str, str]:
        """Load the model; return versions and settings. Raises SystemFailed."""
        answer: dict[str, str] = self._ask(setup, LOAD_TIMEOUT_S)
        return answer

    def run(self, requests: Requests) -> dict[str, Any]:
        """Return what ``serve.run`` saw, checked. Raises SystemFailed."""
        seen: dict[str, Any] = self._ask(dataclasses.asdict(requests), RUN_TIMEOUT_S)
        lengths = {len(output) for output in seen["outputs"]}
        if lengths != {requests.num_tokens}:
            raise SystemFailed(f"{self.name} generated {sorted(lengths)} tokens, not {requests.num_tokens}")
        return seen

    def close(self) -> None:
        """End the process and whatever it started; a system has nothing to save."""
        self._signal(signal.SIGKILL)
        self._process.wait(STOP_TIMEOUT_S)

    def _ask(self, order: Any, timeout_s: float) -> Any:
        assert self._process.stdin is not None
        self._signal(signal.SIGCONT)
        try:
            self._process.stdin.write(orjson.dumps(order, default=str) + b"\n")
            self._process.stdin.flush()
            line = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            raise SystemFailed(f"{self.name} took longer than {timeout_s:g} s") from None
        except BrokenPipeError:
            line = b""
        finally:
            self._signal(signal.SIGSTOP)
        if not line:
            raise SystemFailed(f"{self.name} ended: {self._last_words()}")
        answer = orjson.loads(line)
        if "error" in answer:
            raise SystemFailed(f"{self.name}: {answer['error']}")
        return answer["ok"]

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(b"")

    def _last_words(self) -> str:
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else "it printed nothing"

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)
