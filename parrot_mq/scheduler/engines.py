"""Watching the engines: their heartbeats, and what the dead ones leave behind."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from parrot_mq.scheduler.core import Core
from parrot_mq.scheduler.dispatcher import Dispatcher
from parrot_mq.scheduler.policy import EngineLoad
from parrot_mq.scheduler.signals import Bell
from parrot_mq.store import Store
from parrot_mq.store.reader import engines
from parrot_mq.store.scheduler import SchedulerStore, forget_engine

MAX_RUNNING = 200
"""Requests of a dead engine in one script call."""

log = logging.getLogger(__name__)


class EngineWatch:
    """Reads every engine's heartbeat, periodically and when an engine announces a change."""

    def __init__(
        self,
        store: Store,
        core: Core,
        stores: Sequence[SchedulerStore],
        dispatcher: Dispatcher,
        over: asyncio.Event,
        poll_s: float,
    ) -> None:
        self._store = store
        self._core = core
        self._stores = stores
        self._dispatcher = dispatcher
        self._over = over
        self._poll_s = poll_s
        self.bell = Bell()

    async def run(self) -> None:
        """Poll until the term is over."""
        while not self._over.is_set():
            await self.bell.wait(self._poll_s)
            await self.poll()
            await self._dispatcher.dispatch()
            for load in self._core.dead_engines():
                await self._bury(load)

    async def poll(self) -> None:
        """Read the heartbeats once."""
        before = {load.id for load in self._core.engines.values() if load.record is not None}
        self._core.update_engines(await engines(self._store))
        for load in self._core.engines.values():
            if load.record is not None and load.id not in before:
                log.info(
                    "engine %s (%s, model %s) is %s", load.id, load.record.kind, load.model, load.record.state.value
                )
            elif load.record is None and load.id in before:
                log.warning("engine %s has no heartbeat any more", load.id)

    async def _bury(self, load: EngineLoad) -> None:
        """Take back what a dead engine holds in every partition; forget it once nothing is left."""
        for number, store in enumerate(self._stores):
            running = [i for i in self._core.equals.outstanding(load.id) if self._is_at(i, number, load.id)]
            more = True
            while more and not self._over.is_set():
                dead, more = await store.reap_engine(load.id, running[:MAX_RUNNING])
                del running[:MAX_RUNNING]
                if not dead:
                    return  # it has a heartbeat after all: the next poll reads it
                more = more or bool(running)
        if self._over.is_set():
            return
        await forget_engine(self._store, load.id)
        self._core.forget_engine(load.id)
        log.warning("engine %s is gone; what it held is queued again", load.id)

    def _is_at(self, request_id: str, partition: int, engine_id: str) -> bool:
        node = self._core.graph.requests.get(request_id)
        return node is not None and node.partition == partition and node.engine == engine_id
