"""Real processes for the tests: started, killed, and always ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
WAIT_S = 40.0


class Service:
    """A Python process of ours, with its output in a file."""

    def __init__(self, log: Path, *arguments: str) -> None:
        self.log = log
        path = os.pathsep.join(map(str, (ROOT, ROOT / "kernels", ROOT / "workers")))
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, *arguments],
                env={**os.environ, "PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        """Kill it with SIGKILL and make sure that it was alive and now is dead."""
        assert self.alive, f"ended before it was killed:\n{self.log.read_text()}"
        self.process.kill()
        assert self.process.wait(10) == -signal.SIGKILL

    def stop(self) -> int:
        """End it with SIGTERM and return its status; SIGKILL if that takes too long."""
        if self.alive:
            self.process.terminate()
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait(10)


class Pipeline:
    """Starts schedulers and sim engines on one Redis; all are stopped at the end."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.folder = folder
        self.services: list[Service] = []

    def _start(self, *arguments: str) -> Service:
        service = Service(self.folder / f"{len(self.services)}.log", *arguments)
        self.services.append(service)
        return service

    def scheduler(self) -> Service:
        return self._start("-m", "parrot_mq.scheduler", "--redis-url", self.url)

    def engine(self, cost: str = '{"decode_base_ms": 25, "decode_per_seq_ms": 0}') -> Service:
        return self._start(
            "-m", "parrot_workers", "--kind", "sim", "--model", "sim", "--redis-url", self.url, "--cost", cost,
            "--max-num-seqs", "4",
        )  # fmt: skip

    def demo_engine(self) -> Service:
        """An engine with the demo's model."""
        return self._start("-m", "parrot_workers", "--redis-url", self.url, "--no-calibrate")

    def stop(self) -> list[int]:
        return [service.stop() for service in reversed(self.services)]


@contextlib.contextmanager
def pipeline(url: str, folder: Path) -> Iterator[Pipeline]:
    """Give a ``Pipeline`` whose processes end with the block."""
    made = Pipeline(url, folder)
    try:
        yield made
    finally:
        made.stop()


def wait_for(what: str, condition: Callable[[], object], timeout_s: float = WAIT_S) -> None:
    """Poll ``condition`` until it is true."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s} s: {what}")
        time.sleep(0.02)
