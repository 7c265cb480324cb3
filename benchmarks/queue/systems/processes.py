"""Starting and ending a system's serving side."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence

STOP_TIMEOUT_S = 5.0


@contextlib.contextmanager
def serving(commands: Sequence[Sequence[str]], environ: dict[str, str] | None = None) -> Iterator[None]:
    """Run ``commands`` (arguments to this Python) as processes for the length of the block."""
    started = [
        subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, **(environ or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        for command in commands
    ]
    try:
        yield
        for process in started:
            if process.poll() is not None:
                raise RuntimeError(f"{process.args} ended early with {process.returncode}")
    finally:
        for process in started:
            process.send_signal(signal.SIGTERM)
        for process in started:
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                pass
            finally:  # with the processes that it has left behind: they would take the next round's jobs
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
