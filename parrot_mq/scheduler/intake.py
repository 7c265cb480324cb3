"""Reading a partition's intake stream: each entry is folded and acted on in the same task, without another hop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from parrot_mq.scheduler.core import Core
from parrot_mq.scheduler.dispatcher import Dispatcher
from parrot_mq.scheduler.fold import SHELL_KINDS
from parrot_mq.scheduler.recovery import Recovered, recover
from parrot_mq.store.scheduler import IntakeEntry, SchedulerStore

BLOCK_MS = 250
"""A blocking read ends after this long, to see whether the term is over."""
MAX_ENTRIES = 1000
SLICE_S = 0.02
"""Folding goes on for about this long before what is ready by then is dispatched."""

log = logging.getLogger(__name__)


class Errands(Protocol):
    """What an intake entry may ask the rest of the shell to do."""

    def entry(self, partition: int, entry: IntakeEntry) -> None:
        """Act on an entry of one of ``SHELL_KINDS``, later and elsewhere."""

    def recovered(self, partition: int, recovered: Recovered) -> None:
        """Act on what a take-over found."""

    def doomed(self) -> None:
        """Reject the requests in ``Core.doomed``."""

    def upgraded(self) -> None:
        """Tell engines about the requests in ``Core.upgraded``."""

    def lanes(self) -> None:
        """Grant what ``Core.due_lanes`` returns."""

    def templates(self) -> None:
        """Fetch the templates that ``Core.templates`` misses."""


class Intake:
    """The loop of one partition. ``applied`` is the id of the newest entry that was folded."""

    def __init__(
        self,
        core: Core,
        store: SchedulerStore,
        dispatcher: Dispatcher,
        errands: Errands,
        over: asyncio.Event,
        now_s: Callable[[], float],
    ) -> None:
        self._core = core
        self._store = store
        self._dispatcher = dispatcher
        self._errands = errands
        self._over = over
        self._now_s = now_s
        self.applied = ""
        self.num_entries = 0

    async def run(self) -> None:
        """Take over, then read until the term is over."""
        number = self._store.partition.keys.partition
        after = await self._store.last_intake_id()
        started_s = self._now_s()
        found = await recover(self._core, self._store.partition, self._now_s, self._dispatcher.dispatch, self._over)
        log.info(
            "partition %d: took over %d requests in %.3f s, intake from %s",
            number, found.num_requests, self._now_s() - started_s, after,
        )  # fmt: skip
        self._errands.recovered(number, found)
        self.applied = after
        self._ring()
        while not self._over.is_set():
            await self._turn()

    async def _turn(self) -> None:
        partition = self._store.partition
        block_ms = BLOCK_MS
        hold_s = self._core.holds.wait_s(self._now_s())
        if hold_s is not None:
            block_ms = max(1, min(block_ms, round(hold_s * 1000)))
        after = self.applied
        entries = await partition.robust(lambda: self._store.read_intake(after, block_ms=block_ms, count=MAX_ENTRIES))
        now_s = self._now_s()
        for entry in entries:
            self._apply(entry, now_s)
            if self._now_s() - now_s > SLICE_S:  # large submits: what they bring must not hold everybody else up
                await self._dispatcher.dispatch()
                now_s = self._now_s()
        if entries:
            self.applied = entries[-1].id
            self.num_entries += len(entries)
        if len(self._core.holds):
            self._core.release_held(now_s)
        if not self._core.equals.is_idle:
            await self._dispatcher.dispatch()
        self._ring()

    def _apply(self, entry: IntakeEntry, now_s: float) -> None:
        if entry.kind in SHELL_KINDS:
            self._errands.entry(self._store.partition.keys.partition, entry)
            return
        try:
            self._core.fold(entry, now_s)
        except (KeyError, ValueError, TypeError):
            # One unreadable hint must not stop the scheduler; a take-over reads the state that it was about.
            log.exception("intake entry %s of kind %r cannot be read and is passed over", entry.id, entry.kind)

    def _ring(self) -> None:
        if self._core.doomed:
            self._errands.doomed()
        if self._core.upgraded:
            self._errands.upgraded()
        if self._core.due_lanes() is not None:
            self._errands.lanes()
        if self._core.templates.has_missing:
            self._errands.templates()
