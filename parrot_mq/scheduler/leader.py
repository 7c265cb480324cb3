"""Leadership: one scheduler acts, the others stand by. The key is for efficiency, epochs make it safe."""

from __future__ import annotations

import asyncio

from redis.exceptions import ResponseError

from parrot_mq.errors import ParrotError
from parrot_mq.scheduler.signals import wait_for
from parrot_mq.store import Store
from parrot_mq.store.partition import Partition
from parrot_mq.store.scheduler import drop_leadership, take_leadership

STANDBY_POLL_S = 0.25


class TermEnded(ParrotError):
    """This scheduler's term is over, but it may lead again: it goes back to standing by."""


class Leadership:
    """Takes and keeps the leader's key in the name of one scheduler."""

    def __init__(self, store: Store, scheduler_id: str, ttl_s: float, stopping: asyncio.Event) -> None:
        self._store = store
        self._id = scheduler_id
        self._ttl_s = ttl_s
        self._stopping = stopping

    async def acquire(self) -> bool:
        """Wait until we lead; False if we are to stop before that."""
        while not self._stopping.is_set():
            if await take_leadership(self._store, self._id, self._ttl_s):
                return True
            await wait_for(self._stopping, min(STANDBY_POLL_S, self._ttl_s / 3))
        return False

    async def keep(self, over: asyncio.Event) -> None:
        """Renew the key every third of its time until the term is over.

        Raises ``TermEnded`` once another scheduler has it, or if Redis was restarted: it may have lost its last
        second, so that what we know must be read anew.
        """
        before = [await _run_id(partition) for partition in self._store.partitions]
        while not await wait_for(over, self._ttl_s / 3):
            if not await take_leadership(self._store, self._id, self._ttl_s):
                raise TermEnded("another scheduler leads")
            now = [await _run_id(partition) for partition in self._store.partitions]
            if now != before:
                raise TermEnded("Redis was restarted; its state is read anew")

    async def drop(self) -> None:
        """Give the key up, so that another scheduler need not wait for it to expire."""
        await drop_leadership(self._store, self._id)


async def _run_id(partition: Partition) -> str:
    try:
        info = await partition.robust(lambda: partition.redis.info("server"))
    except ResponseError:  # not every server has INFO (fakeredis): then a restart goes unnoticed
        return ""
    return str(info.get("run_id", ""))
