"""A child process that is kept running."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable

import pytest

from parrot_mq import process
from parrot_mq.process import Child, ChildFailed, ChildState, Restarts

FAST = Restarts(limit=2, min_s=0.01, max_s=0.02)


class Log:
    """What a child says and how it fares."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.states: list[ChildState] = []
        self.details: list[str] = []

    def line(self, name: str, text: str) -> None:
        self.lines.append(text)

    def state(self, name: str, state: ChildState, detail: str) -> None:
        self.states.append(state)
        self.details.append(detail)


def child(log: Log, code: str, *, restarts: Restarts = FAST, stop_timeout_s: float = 30.0) -> Child:
    return Child(
        "child",
        [sys.executable, "-c", code],
        environment={"COLOUR": "red"},
        restarts=restarts,
        stop_timeout_s=stop_timeout_s,
        on_line=log.line,
        on_state=log.state,
    )


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - what another process does has no event
            await asyncio.sleep(0.01)


async def cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def running(
    log: Log, code: str, body: Callable[[Child], Awaitable[None]], *, stop_timeout_s: float = 30.0
) -> None:
    kept = child(log, code, stop_timeout_s=stop_timeout_s)
    task = asyncio.create_task(kept.run())
    await until(lambda: log.lines)
    await body(kept)
    await cancelled(task)
    assert kept.pid is None


async def test_it_is_stopped_by_sigterm_and_its_last_words_are_read() -> None:
    code = (
        "import signal, sys, time\n"
        "def stop(*_): print('drained', flush=True); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "print('up', flush=True); time.sleep(60)"
    )
    log = Log()

    async def nothing(kept: Child) -> None:
        assert kept.pid is not None

    await running(log, code, nothing)
    assert log.lines == ["up", "drained"]
    assert log.states == [ChildState.STARTING, ChildState.RUNNING]


async def test_one_that_does_not_heed_sigterm_is_killed() -> None:
    log = Log()
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    pids: list[int] = []

    async def note(kept: Child) -> None:
        assert kept.pid is not None
        pids.append(kept.pid)

    await running(log, code, note, stop_timeout_s=0.2)
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


async def test_a_second_cancel_ends_the_draining() -> None:
    log = Log()
    kept = child(
        log,
        "import signal, time; signal.signal(signal.SIGTERM, lambda *_: print('no', flush=True)); "
        "print('up', flush=True)\nwhile True: time.sleep(60)",
    )
    task = asyncio.create_task(kept.run())
    await until(lambda: log.lines)
    task.cancel()
    await until(lambda: log.lines == ["up", "no"])
    await cancelled(task)
    assert kept.pid is None


async def test_a_crash_is_followed_by_a_restart_with_back_off() -> None:
    log = Log()
    kept = child(log, "import time; print('up', flush=True); time.sleep(60)")
    task = asyncio.create_task(kept.run())
    for count in (1, 2):
        await until(lambda count=count: len(log.lines) == count)
        kept.kill()
    await until(lambda: len(log.lines) == 3)
    await cancelled(task)
    assert log.states.count(ChildState.CRASHED) == 2
    assert "ended with SIGKILL, again in 0.01 s" in log.details
    assert "ended with SIGKILL, again in 0.02 s" in log.details
    kept.kill()  # harmless now


async def test_it_gives_up_after_so_many_crashes_with_the_last_line() -> None:
    log = Log()
    with pytest.raises(ChildFailed, match="child ended with status 3: no weights"):
        await child(log, "import sys; print('no weights'); print(); sys.exit(3)").run()
    assert log.lines.count("no weights") == 3
    assert log.states[-1] is ChildState.STOPPED


async def test_it_gets_our_environment_and_its_own() -> None:
    log = Log()
    with pytest.raises(ChildFailed, match="red True"):
        await child(log, "import os, sys; print(os.environ['COLOUR'], 'PATH' in os.environ); sys.exit(2)").run()


async def test_a_wrong_start_is_not_repeated() -> None:
    log = Log()
    with pytest.raises(ChildFailed, match="status 2: it printed nothing"):
        await child(log, "import sys; sys.exit(2)").run()
    assert log.states == [ChildState.STARTING, ChildState.RUNNING, ChildState.STOPPED]


async def test_a_long_life_starts_the_back_off_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "SETTLED_S", 0.0)
    log = Log()
    task = asyncio.create_task(child(log, "print('x')").run())
    await until(lambda: len(log.lines) > 4)  # more often than the limit of two
    await cancelled(task)
    assert set(log.details[2::3]) <= {"ended with status 0, again in 0.01 s"}


async def test_an_endless_line_is_dropped_and_the_next_one_read() -> None:
    log = Log()
    with pytest.raises(ChildFailed):
        await child(log, "import sys; print('a' * 300_000); print('end'); sys.exit(2)").run()
    assert log.lines[-1] == "end"


async def test_output_held_open_by_a_grandchild_does_not_keep_the_end_from_being_seen() -> None:
    log = Log()
    code = "import subprocess, sys; subprocess.Popen(['sleep', '1.2']); print('gone', flush=True); sys.exit(2)"
    with pytest.raises(ChildFailed, match="gone"):
        await child(log, code).run()


def test_back_off_doubles_up_to_its_bound() -> None:
    assert [Restarts(min_s=0.5, max_s=3).delay_s(crashes) for crashes in (1, 2, 3, 4, 5)] == [0.5, 1, 2, 3, 3]
