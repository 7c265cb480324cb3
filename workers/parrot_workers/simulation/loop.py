"""An event loop whose clock jumps: where nothing is ready it is at once the time of the next timer."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time as real_time
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, TypeVar

from parrot_workers.simulation.errors import Deadlock, OutOfTime, TooSlow
from parrot_workers.simulation.waiting import what_waits

T = TypeVar("T")
_LOOKS_BETWEEN = 256
"""Rounds of the loop between two looks at the real clock."""


class _Task(asyncio.Task[Any]):
    """A task whose hash is its number: sets of tasks are gone through in the same order in every run."""

    _numbers = itertools.count(1)

    def __init__(self, *args: Any, number: int, **options: Any) -> None:
        self._number = number
        super().__init__(*args, **options)

    def __hash__(self) -> int:
        return self._number


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs one main coroutine in virtual time, which begins at 0 s.

    It knows no sockets, no signals and no threads: what is handed to an executor runs at once, in place. ``run_main``
    raises ``OutOfTime`` after ``limit_s`` of virtual and ``TooSlow`` after ``real_limit_s`` of real time, and
    ``Deadlock`` where nothing is scheduled and main is not done; each says who waits for what.
    """

    def __init__(self, *, limit_s: float, real_limit_s: float) -> None:
        self._now_s = 0.0
        self._limit_s = limit_s
        self._real_limit_s = real_limit_s
        self._real_start_s = real_time.monotonic()
        self._numbers = itertools.count(1)
        self._main: asyncio.Task[Any] | None = None
        self.num_jumps = 0
        self.num_rounds = 0
        super().__init__()
        self._selector = self  # BaseEventLoop asks it how long nothing happens
        self.set_task_factory(self._make_task)

    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self._now_s

    def run_main(self, main: Coroutine[Any, Any, T]) -> T:
        """Run ``main`` to its end. Raises what it raises, and the three errors of the class."""
        self._main = self.create_task(main, name="main")
        asyncio.set_event_loop(self)
        try:
            result: T = self.run_until_complete(self._main)
            return result
        finally:
            asyncio.set_event_loop(None)

    def end(self) -> None:
        """Cancel whatever still runs, and close."""
        self._main = None
        self._limit_s += _FAREWELL_S
        asyncio.set_event_loop(self)
        try:
            left = asyncio.all_tasks(self)
            for task in left:
                task.cancel()
            if left:
                self.run_until_complete(asyncio.wait(left, timeout=_FAREWELL_S / 2))
            self.run_until_complete(self.shutdown_asyncgens())
        finally:
            asyncio.set_event_loop(None)
            self.close()

    def _make_task(
        self, loop: asyncio.AbstractEventLoop, coroutine: Any, context: Context | None = None, **options: Any
    ) -> _Task:
        return _Task(coroutine, loop=loop, context=context, number=next(self._numbers), **options)

    # What BaseEventLoop leaves to a loop with sockets -----------------------------------------------------------------

    def select(self, timeout_s: float | None) -> list[Any]:
        """Let time pass until the next timer: the answer to "how long may I sleep?" is not to."""
        self.num_rounds += 1
        if self.num_rounds % _LOOKS_BETWEEN == 0 and real_time.monotonic() - self._real_start_s > self._real_limit_s:
            raise TooSlow(
                f"the simulation has run for {self._real_limit_s:g} s and is at virtual second {self._now_s:.3f}"
                + what_waits(self._main)
            )
        if timeout_s is None:
            raise Deadlock(f"nothing is scheduled at virtual second {self._now_s:.3f}" + what_waits(self._main))
        if timeout_s > 0:
            self.num_jumps += 1
            self._now_s = self._scheduled[0].when()  # type: ignore[attr-defined]
            if self._now_s > self._limit_s:
                raise OutOfTime(f"main is not done after {self._limit_s:g} virtual seconds" + what_waits(self._main))
        return []

    def _process_events(self, events: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """Call back soon. Only this thread may ask: another's order would be chance."""
        assert threading.get_ident() == self._thread_id, "a simulation has one thread"  # type: ignore[attr-defined]
        return self.call_soon(callback, *args, context=context)

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """Run ``func`` here and now; it takes no virtual time."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - it is the caller's, who awaits the future
            future.set_exception(error)
        return future


_FAREWELL_S = 120.0
"""Virtual time that cancelled tasks have to end."""
