"""What the clock brings: leases and back-offs that end, fan-outs, unknown models, expired sessions, a long intake."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from parrot_mq.errors import ErrorRecord
from parrot_mq.scheduler.core import Core
from parrot_mq.scheduler.intake import Intake
from parrot_mq.scheduler.nodes import RequestNode
from parrot_mq.scheduler.signals import Bell
from parrot_mq.store import ProducerStore
from parrot_mq.store.scheduler import SchedulerStore

SESSIONS_EVERY = 4
"""Sessions are looked at in every fourth round."""

log = logging.getLogger(__name__)


class FanOut:
    """Goes on with large fan-outs of one partition, a bounded number of units at a time, between which others run."""

    def __init__(self, store: SchedulerStore, over: asyncio.Event, interval_s: float) -> None:
        self._store = store
        self._over = over
        self._interval_s = interval_s
        self.bell = Bell()

    async def run(self) -> None:
        """Propagate at each hint, and periodically in case one was missed, until the term is over."""
        while not self._over.is_set():
            while await self._store.propagate() and not self._over.is_set():
                pass
            await self.bell.wait(self._interval_s)


class Reaper:
    """Rounds over all partitions."""

    def __init__(
        self,
        core: Core,
        stores: Sequence[SchedulerStore],
        intakes: Sequence[Intake],
        over: asyncio.Event,
        now_s: Callable[[], float],
        interval_s: float,
    ) -> None:
        self._core = core
        self._stores = stores
        self._intakes = intakes
        self._over = over
        self._now_s = now_s
        self._interval_s = interval_s
        self._round = 0
        self.bell = Bell()

    async def run(self) -> None:
        """Reap until the term is over."""
        while not self._over.is_set():
            await self.reap()
            await self.bell.wait(self._interval_s)

    async def reap(self) -> None:
        """One round."""
        for store in self._stores:
            while await store.reap() and not self._over.is_set():
                pass
        await self._reject_doomed()
        for store, intake in zip(self._stores, self._intakes, strict=True):
            if intake.applied:
                await store.trim_intake(intake.applied)
        if self._round % SESSIONS_EVERY == 0:
            for store in self._stores:
                await self._delete_expired(store)
        self._round += 1

    async def _reject_doomed(self) -> None:
        for node in self._core.rejects(self._now_s()):
            if self._over.is_set():
                return
            await self._stores[node.partition].reject(node.id, _unknown_model(node, self._core.models.known))

    async def _delete_expired(self, store: SchedulerStore) -> None:
        for session_id in await store.expired_sessions():
            log.info("session %s has expired and is deleted", session_id)
            await ProducerStore(store.partition).delete_session(session_id)


def _unknown_model(node: RequestNode, known: Sequence[str]) -> ErrorRecord:
    served = ", ".join(known) or "none"
    return ErrorRecord(
        "UnknownModel",
        f"no engine serves the model {node.model!r} (served: {served}); start one with "
        f"`parrot-mq engine --model {node.model}`, or ask for another model",
        request=node.id,
    )
