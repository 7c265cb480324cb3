"""One term of leadership: from the epoch it raised to the loss of the key. What it knows ends with it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from pathlib import Path
from typing import Protocol

from parrot_mq.scheduler.core import Core
from parrot_mq.scheduler.couriers import (
    HintCourier,
    LaneCourier,
    LengthCourier,
    ObjectiveCourier,
    TemplateCourier,
    WhyCourier,
)
from parrot_mq.scheduler.decision_log import DecisionLog, LoggedCore
from parrot_mq.scheduler.dispatcher import Dispatcher
from parrot_mq.scheduler.engines import EngineWatch
from parrot_mq.scheduler.imports import Imports
from parrot_mq.scheduler.intake import Intake
from parrot_mq.scheduler.leader import Leadership
from parrot_mq.scheduler.reaper import FanOut, Reaper
from parrot_mq.scheduler.recovery import Recovered
from parrot_mq.settings import SchedulerSettings
from parrot_mq.store import Store
from parrot_mq.store.scheduler import IntakeEntry, SchedulerStore, new_epoch


def _decision_log(settings: SchedulerSettings) -> DecisionLog | None:
    if not settings.decision_log:
        return None
    return DecisionLog(Path(settings.decision_log), round(settings.decision_log_mib * 1024 * 1024))


class _Loop(Protocol):
    async def run(self) -> None: ...


class Term:
    """The loops of a leader, for all partitions: one core, one intake loop per partition.

    ``run`` ends when ``stopping`` is set (everything read is applied, nothing more is dispatched), or raises what ended
    the term, in an exception group: ``Fenced``, ``TermEnded``, or another ``StoreError``. A term runs once.
    """

    def __init__(self, store: Store, settings: SchedulerSettings, epoch: int, stopping: asyncio.Event) -> None:
        now_s = asyncio.get_running_loop().time
        self.epoch = epoch
        self._decisions = _decision_log(settings)
        self.core = core = Core(settings) if self._decisions is None else LoggedCore(settings, epoch, self._decisions)
        self._stopping = stopping
        self._over = over = asyncio.Event()
        stores = [SchedulerStore(partition, epoch) for partition in store.partitions]
        self.dispatcher = Dispatcher(core, stores, store.ids, over)
        self._intakes = [Intake(core, s, self.dispatcher, self, over, now_s) for s in stores]
        self._engines = EngineWatch(store, core, stores, self.dispatcher, over, settings.engine_poll_s)
        self._reaper = Reaper(core, stores, self._intakes, over, now_s, settings.reap_interval_s)
        self._fan_outs = [FanOut(s, over, settings.reap_interval_s) for s in stores]
        self._imports = Imports(store, over, now_s, settings.reap_interval_s)
        self._templates = TemplateCourier(core, stores, over)
        self._objectives = ObjectiveCourier(core, stores, over)
        self._lanes = LaneCourier(core, stores, over)
        self._why = WhyCourier(core, stores, over)
        self._lengths = LengthCourier(core, stores, over, settings.learn_interval_s)
        self._hints = HintCourier(core, stores, over)

    @classmethod
    async def begin(cls, store: Store, settings: SchedulerSettings, stopping: asyncio.Event) -> Term:
        """Raise the epoch, which fences out every earlier leader, and make the term under it."""
        return cls(store, settings, await new_epoch(store), stopping)

    async def run(self, leadership: Leadership) -> None:
        """Lead. The key is renewed from the start, since a take-over of a large graph takes longer than it lives."""
        try:
            await self._run(leadership)
        finally:
            if self._decisions is not None:
                self._decisions.close()

    async def _run(self, leadership: Leadership) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._until(self._stopping.wait()), name="scheduler-stop")
            tasks.create_task(self._until(leadership.keep(self._over)), name="scheduler-leadership")
            await self._engines.poll()
            loops: list[_Loop] = [
                *self._intakes,
                self._engines,
                self._reaper,
                *self._fan_outs,
                self._imports,
                self._templates,
                self._objectives,
                self._lanes,
                self._lengths,
                self._hints,
                self._why,
            ]
            for loop in loops:
                tasks.create_task(self._until(loop.run()), name=f"scheduler-{type(loop).__name__}")

    async def _until(self, loop: Awaitable[object]) -> None:
        """Run one loop; its end, for whatever reason, is the end of the term.

        The task group cancels the other loops when one fails, but a cancellation may get lost in a Redis command
        (asyncio.wait_for on Python 3.11, in redis-py), so that each loop also checks a flag.
        """
        try:
            await loop
        finally:
            self._over.set()
            for bell in (
                self._engines.bell,
                self._reaper.bell,
                *(fan_out.bell for fan_out in self._fan_outs),
                self._imports.bell,
                self._templates.bell,
                self._objectives.bell,
                self._lanes.bell,
                self._lengths.bell,
                self._hints.bell,
                self._why.bell,
            ):
                bell.ring()

    # Errands of the intake loops --------------------------------------------------------------------------------------

    def entry(self, partition: int, entry: IntakeEntry) -> None:
        """Act on an entry that changes nothing in the core."""
        if entry.kind == "work":
            self._fan_outs[partition].bell.ring()
        elif entry.kind == "engine":
            self._engines.bell.ring()
        elif entry.kind == "outbox":
            self._imports.bell.ring()
        elif entry.kind == "import":
            self._imports.add(partition, entry.fields.get("variable", ""), entry.fields.get("tenant", ""))
        elif entry.kind == "why":
            self._why.ask(partition, entry.fields.get("requests", "").split())

    def recovered(self, partition: int, recovered: Recovered) -> None:
        """Register the imports that the former leader may not have come to."""
        for variable, tenant in recovered.imports:
            self._imports.add(partition, variable, tenant)

    def doomed(self) -> None:
        """Wake the reaper."""
        self._reaper.bell.ring()

    def upgraded(self) -> None:
        """Wake the courier of objectives."""
        self._objectives.bell.ring()

    def lanes(self) -> None:
        """Wake the courier of lanes."""
        self._lanes.bell.ring()

    def templates(self) -> None:
        """Wake the courier of templates."""
        self._templates.bell.ring()
