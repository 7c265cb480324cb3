"""The scheduler as a process: stands by, leads, stands by again."""

from __future__ import annotations

import asyncio
import logging
import signal

from parrot_mq.errors import Fenced, StoreError
from parrot_mq.scheduler.leader import Leadership, TermEnded
from parrot_mq.scheduler.signals import wait_for
from parrot_mq.scheduler.term import Term
from parrot_mq.settings import SchedulerSettings
from parrot_mq.store import Store

AWAY_S = 0.5
"""How long a scheduler waits before it tries again after Redis failed it."""

log = logging.getLogger(__name__)


class Scheduler:
    """One scheduler; any number may run, one of them leads.

    ``leading`` is set while this one does. Its ``id`` is what stands in the leader's key.
    """

    def __init__(self, store: Store, settings: SchedulerSettings | None = None) -> None:
        self.id = f"scheduler-{store.ids.token()}"
        self.leading = asyncio.Event()
        self._store = store
        self._settings = settings or SchedulerSettings.from_env()
        self._stopping = asyncio.Event()
        self._leadership = Leadership(store, self.id, self._settings.leader_ttl_s, self._stopping)
        self.term: Term | None = None
        """The term under way, while it leads."""

    def stop(self) -> None:
        """Drain: dispatch nothing more, finish applying what was read, give leadership up; ``run`` then returns."""
        self._stopping.set()

    async def run(self) -> None:
        """Stand by and lead until ``stop``. A lost term (fenced, Redis away or restarted) leads back to standing by.

        Returns at most ``drain_timeout_s`` after ``stop``.
        """
        async with asyncio.TaskGroup() as tasks:
            work = tasks.create_task(self._work(), name="scheduler-work")
            deadline = tasks.create_task(self._end(work), name="scheduler-drain")
            try:
                await asyncio.wait([work])
            finally:
                self._stopping.set()  # a cancellation may get lost in a Redis command, the flag does not
                deadline.cancel()

    async def _end(self, work: asyncio.Task[None]) -> None:
        await self._stopping.wait()
        await asyncio.sleep(self._settings.drain_timeout_s)
        log.warning("not drained within %.1f s: stopping as is", self._settings.drain_timeout_s)
        work.cancel()

    async def _work(self) -> None:
        log.info("scheduler %s stands by", self.id)
        while not self._stopping.is_set():
            try:
                if await self._leadership.acquire():
                    await self._lead()
            except* (Fenced, TermEnded) as group:
                log.warning("scheduler %s leads no longer: %s", self.id, _reasons(group))
            except* StoreError as group:  # Redis is away, or out of memory
                log.warning("scheduler %s starts anew, Redis did not serve it: %s", self.id, _reasons(group))
                await wait_for(self._stopping, AWAY_S)
        log.info("scheduler %s stopped", self.id)

    async def _lead(self) -> None:
        self.term = await Term.begin(self._store, self._settings, self._stopping)
        log.info("scheduler %s leads, epoch %d", self.id, self.term.epoch)
        self.leading.set()
        try:
            # A task of its own, which ends with it: a task group that fails leaves the task that ran it marked as being
            # cancelled (Python 3.11), and before 3.11.3 a time-out in such a task comes out as its cancellation.
            await asyncio.create_task(self.term.run(self._leadership), name="scheduler-term")
            await self._leadership.drop()
        finally:
            self.leading.clear()
            self.term = None


def _reasons(group: BaseExceptionGroup[BaseException]) -> str:
    """Return the messages of the exceptions in ``group``, groups within it included."""
    messages = (_reasons(e) if isinstance(e, BaseExceptionGroup) else str(e) for e in group.exceptions)
    return "; ".join(dict.fromkeys(messages))


async def serve(store: Store, settings: SchedulerSettings | None = None) -> None:
    """Run a scheduler until SIGTERM or SIGINT, then drain."""
    scheduler = Scheduler(store, settings)
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)
    for number in signals:
        loop.add_signal_handler(number, scheduler.stop)
    try:
        await scheduler.run()
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
