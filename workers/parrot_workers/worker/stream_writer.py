"""Pieces of streamed outputs on their way to one partition, those of many runs in a call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from parrot_mq.store.engine import EngineStore
from parrot_workers.worker.persist import persist
from parrot_workers.worker.run import Run


class StreamWriter:
    """Writes what streamed runs have produced, in the order of their tokens.

    A stream's first piece goes at once; what comes after it is joined for ``interval_s`` into the next. What is due
    within half of that goes along with what is due, so that streams fall into step and a call takes them all. Only one
    call is under way, which keeps each stream in order. The calls are tasks of ``group``; there is none while nothing
    is new. ``fenced`` is called for a run that turned out to belong to somebody else.
    """

    def __init__(
        self, store: EngineStore, group: asyncio.TaskGroup, interval_s: float, fenced: Callable[[Run, str], None]
    ) -> None:
        self._store = store
        self._group = group
        self._interval_s = interval_s
        self._fenced = fenced
        self._loop = asyncio.get_running_loop()
        self._fresh: dict[Run, None] = {}
        """Runs that have something new."""
        self._flushing: dict[Run, asyncio.Future[None]] = {}
        """Runs to be written in the next call, and what then ends."""
        self._timer: asyncio.TimerHandle | None = None
        self._is_writing = False

    def note(self, run: Run) -> None:
        """Have what is new of ``run``, which must be claimed, written when it is time."""
        if run not in self._fresh:
            self._fresh[run] = None
            self._wake(run.stream_due_s)

    async def flush(self, run: Run) -> None:
        """Write all that ``run``, which must be claimed, has; return once it is written or the run was dropped."""
        if run not in self._flushing:
            self._flushing[run] = self._loop.create_future()
            self._wake(0.0)
        await self._flushing[run]

    def _wake(self, due_s: float) -> None:
        """Write at ``due_s`` of the loop's time, if not before."""
        if self._is_writing:
            return  # it looks again at its end
        if self._timer is not None:
            if self._timer.when() <= due_s:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(due_s, self._begin)

    def _begin(self) -> None:
        self._timer = None
        runs = self._take()
        flushing, self._flushing = self._flushing, {}
        if runs or flushing:
            self._is_writing = True
            self._group.create_task(self._write(runs | dict.fromkeys(flushing), flushing))

    def _take(self) -> dict[Run, None]:
        """Take out the runs that are due. Those that have left the engine are forgotten: their end flushes them."""
        now_s = self._loop.time()
        due: dict[Run, None] = {}
        later: dict[Run, None] = {}
        for run in self._fresh:
            if run.dropped or not run.in_engine:
                continue
            if run.stream_due_s <= now_s + self._interval_s / 2:
                run.stream_due_s = now_s + self._interval_s
                due[run] = None
            else:
                later[run] = None
        self._fresh = later
        return due

    async def _write(self, runs: dict[Run, None], flushing: dict[Run, asyncio.Future[None]]) -> None:
        try:
            pieces = {run: piece for run in runs if not run.dropped and (piece := run.take_piece()) is not None}
            await persist(pieces, self._store.emit_many, self._fenced)
        finally:
            for written in flushing.values():
                if not written.done():
                    written.set_result(None)
            self._is_writing = False
            if self._flushing:
                self._wake(0.0)
            elif self._fresh:
                self._wake(min(run.stream_due_s for run in self._fresh))
