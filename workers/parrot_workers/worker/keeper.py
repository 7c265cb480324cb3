"""Heartbeats and lease renewals, where nothing can starve them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol, TypeVar

from parrot_mq.errors import Overloaded, StoreUnavailable
from parrot_mq.messages import EngineRecord
from parrot_mq.settings import WorkerSettings
from parrot_mq.store import EngineStore, Store
from parrot_mq.store.engine import deregister, register
from parrot_workers.worker.run import Leases

log = logging.getLogger(__name__)
T = TypeVar("T")
OPEN_TIMEOUT_S = 30.0
CLOSE_TIMEOUT_S = 5.0


@dataclasses.dataclass(frozen=True, slots=True)
class Lost:
    """These (request, fence) pairs are not ours any more."""

    pairs: list[tuple[str, str]]
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class Reaped:
    """The engine was taken for dead: its streams are gone."""

    engine_id: str


@dataclasses.dataclass(frozen=True, slots=True)
class Broken:
    """The keeper has ended with an error."""

    error: Exception


KeeperEvent = Lost | Reaped | Broken


class KeeperPort(Protocol):
    """A keeper that runs somewhere."""

    async def open(self) -> None:
        """Connect, write the first heartbeat, go on beating. Raises what connecting raises."""

    async def beat(self) -> None:
        """Write a heartbeat now."""

    async def leave(self, engine_id: str) -> None:
        """Take the engine off the list."""

    async def close(self) -> None:
        """End it. Idempotent."""


class Keeper:
    """Keeps an engine alive in Redis: its heartbeat in every partition, and the leases of what it runs.

    ``describe`` returns the record to write, ``report`` is told what was found; both are called on the keeper's thread.
    """

    def __init__(
        self,
        open_store: Callable[[], Awaitable[Store]],
        settings: WorkerSettings,
        leases: Leases,
        describe: Callable[[], EngineRecord],
        report: Callable[[KeeperEvent], None],
    ) -> None:
        self._open_store = open_store
        self._settings = settings
        self._leases = leases
        self._describe = describe
        self._report = report
        self._store: Store | None = None
        self._beating = asyncio.Lock()
        self._last_beat_s: float | None = None
        self._last_id = ""
        self._ending = asyncio.Event()
        self._left: set[str] = set()
        """Engines that must not come back by a heartbeat."""

    async def open(self) -> None:
        """Connect and write the first heartbeat, which makes the engine's streams."""
        self._store = await self._open_store()
        await self.beat()

    async def run(self) -> None:
        """Beat and renew until ``close``."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._beats())
                group.create_task(self._renewals())
        except* Exception as group:  # noqa: BLE001 - the thread's outermost frame: an engine without a keeper is taken for dead
            self._report(Broken(group.exceptions[0]))

    async def beat(self) -> None:
        """Write a heartbeat now.

        If the last one has run out, the reaper may have taken the engine for dead; that is found out first, because a
        heartbeat would bring its streams back.
        """
        store = self._opened()
        async with self._beating:
            record, now = self._describe(), time.monotonic()
            if record.id in self._left:
                return
            gap_s = now - self._last_beat_s if self._last_beat_s is not None and record.id == self._last_id else 0.0
            if gap_s > store.settings.heartbeat_ttl_s and not await self._has_streams(record.id):
                self._report(Reaped(record.id))
                return
            await register(store, record)
            self._last_beat_s, self._last_id = now, record.id

    async def leave(self, engine_id: str) -> None:
        """Take the engine off the list."""
        self._left.add(engine_id)
        if self._store is not None:
            async with self._beating:
                await deregister(self._store, engine_id)

    async def close(self, running: asyncio.Task[None] | None) -> None:
        """End ``running`` (a task of ``run``) and close the connections."""
        self._ending.set()
        if running is not None:
            await asyncio.wait([running], timeout=CLOSE_TIMEOUT_S)
            running.cancel()
        if self._store is not None:
            await self._store.aclose()
            self._store = None

    def _opened(self) -> Store:
        assert self._store is not None, "the keeper is not open"
        return self._store

    async def _has_streams(self, engine_id: str) -> bool:
        return all([await EngineStore(partition).is_registered(engine_id) for partition in self._opened().partitions])

    async def _beats(self) -> None:
        interval_s = min(self._settings.heartbeat_s, self._opened().settings.heartbeat_ttl_s / 3)
        await self._every(interval_s, "heartbeat", self.beat)

    async def _renewals(self) -> None:
        interval_s = min(self._settings.renew_s, self._opened().settings.lease_s / 3)
        await self._every(interval_s, "renewal of leases", self.renew)

    async def renew(self) -> None:
        """Renew all leases now, and report those that are lost."""
        for number, partition in enumerate(self._opened().partitions):
            held = self._leases.of(number)
            if not held:
                continue
            found = await EngineStore(partition).renew(self._last_id, held)
            for ids, reason in ((found.lost, "another attempt has it"), (found.cancelled, "it was cancelled")):
                if ids:
                    self._report(Lost([pair for pair in held if pair[0] in ids], reason))

    async def _every(self, interval_s: float, what: str, run: Callable[[], Awaitable[None]]) -> None:
        # A flag, not a cancellation: asyncio.wait_for, around every send of redis-py, may swallow one on Python 3.11.
        while not self._ending.is_set():
            started_s = time.monotonic()
            try:
                await run()
            except (StoreUnavailable, Overloaded) as error:
                log.warning("%s failed, will try again: %s", what, error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(started_s + interval_s - time.monotonic()):
                    await self._ending.wait()


class KeeperThread:
    """Runs a keeper on an event loop in a thread of its own; call it from another event loop."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._loop: asyncio.AbstractEventLoop | None = None
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._main, name="engine-keeper", daemon=True)
        self._running: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Start the thread, connect, and write the first heartbeat. Raises what connecting raises."""
        self._thread.start()
        await asyncio.to_thread(self._started.wait, OPEN_TIMEOUT_S)
        await self._there(self._keeper.open())
        await self._there(self._begin())

    async def beat(self) -> None:
        """Write a heartbeat now."""
        await self._there(self._keeper.beat())

    async def leave(self, engine_id: str) -> None:
        """Take the engine off the list."""
        if self._loop is not None:
            await self._there(self._keeper.leave(engine_id))

    async def close(self) -> None:
        """End the thread."""
        if self._loop is None:
            return
        await self._there(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        await asyncio.to_thread(self._thread.join, CLOSE_TIMEOUT_S)
        self._loop = None

    def _main(self) -> None:
        with asyncio.Runner() as runner:
            self._loop = runner.get_loop()
            self._loop.call_soon(self._started.set)
            self._loop.run_forever()

    async def _there(self, coroutine: Coroutine[Any, Any, T]) -> T:
        assert self._loop is not None, "the keeper's thread is not running"
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self._loop))

    async def _begin(self) -> None:
        self._running = asyncio.get_running_loop().create_task(self._keeper.run())

    async def _end(self) -> None:
        await self._keeper.close(self._running)


class KeeperTask:
    """Runs a keeper on the caller's event loop: for simulations, where time is not real and threads would race."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._running: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connect, write the first heartbeat and go on beating."""
        await self._keeper.open()
        self._running = asyncio.get_running_loop().create_task(self._keeper.run())

    async def beat(self) -> None:
        """Write a heartbeat now."""
        await self._keeper.beat()

    async def leave(self, engine_id: str) -> None:
        """Take the engine off the list."""
        await self._keeper.leave(engine_id)

    async def close(self) -> None:
        """End the task."""
        await self._keeper.close(self._running)
