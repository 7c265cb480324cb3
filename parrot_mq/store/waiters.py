"""Waiting for variables: pub/sub wakes, the state decides."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from parrot_mq.store.partition import Partition

POLL_S = 1.0
RECONNECT_S = 0.05


class Waiters:
    """Wakes whoever waits for a variable of one partition.

    The protocol: subscribe and wait for the confirmation; register; read the state; wait for a wake-up, with a
    re-check every few seconds. A confirmation that comes again means a silent reconnect: everybody is woken, since a
    message may have been missed. A wake-up promises nothing; its receiver reads the state again.
    """

    def __init__(self, partition: Partition) -> None:
        self._partition = partition
        self._events: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._channels: dict[str, asyncio.Event] = {}
        self._pubsub: PubSub | None = None
        self._task: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()
        self._listener: Callable[[str], None] | None = None
        self._broken = False
        """Some channel may not be subscribed to: the reader has to begin anew."""

    def listen(self, listener: Callable[[str], None]) -> None:
        """Have ``listener`` called at each wake-up with the variable's id, and with "" where messages may be missed.

        For one who waits for many variables, and would need a task for each event of ``watching``.
        """
        self._listener = listener

    async def subscribe(self, channels: Sequence[str]) -> None:
        """Subscribe to ``channels`` and wait until Redis has confirmed each.

        While Redis is away that takes until it is back: the caller bounds the wait.
        """
        async with self._lock:
            new = [channel for channel in channels if channel not in self._channels]
            for channel in new:
                self._channels[channel] = asyncio.Event()
            if new:
                if self._pubsub is None:
                    self._pubsub = self._partition.blocking.pubsub()
                try:
                    await self._pubsub.subscribe(*new)
                except (RedisError, OSError):
                    self._broken = True  # the reader subscribes anew to all of them
                if self._task is None:
                    self._task = asyncio.create_task(self._run(), name="parrot_mq-waiters")
        for channel in channels:
            if event := self._channels.get(channel):
                await event.wait()

    async def unsubscribe(self, channel: str) -> None:
        """Forget a channel."""
        async with self._lock:
            if self._channels.pop(channel, None) is not None and self._pubsub is not None:
                with contextlib.suppress(RedisError, OSError):
                    await self._pubsub.unsubscribe(channel)

    @contextlib.contextmanager
    def watching(self, variable_id: str) -> Iterator[asyncio.Event]:
        """Yield an event that is set at each wake-up for ``variable_id``."""
        event = asyncio.Event()
        self._events[variable_id].add(event)
        try:
            yield event
        finally:
            self._events[variable_id].discard(event)
            if not self._events[variable_id]:
                del self._events[variable_id]

    async def _run(self) -> None:
        while True:
            try:
                if self._broken:
                    await self._subscribe_anew()
                await self._read()
            except (RedisError, OSError):
                self._broken = True
                await asyncio.sleep(RECONNECT_S)

    async def _read(self) -> None:
        if self._pubsub is None or not self._pubsub.subscribed:
            await asyncio.sleep(RECONNECT_S)
            return
        message = await self._pubsub.get_message(timeout=POLL_S)
        if message is None:
            return
        if message["type"] == "subscribe":
            confirmed = self._channels.get(message["channel"])
            if confirmed is not None and not confirmed.is_set():
                confirmed.set()
            else:
                self._wake_all()
        elif message["type"] == "message":
            self._wake(message["data"])

    def _wake(self, message: str) -> None:
        for variable_id in message.split():
            for event in self._events.get(variable_id, ()):
                event.set()
            if self._listener is not None:
                self._listener(variable_id)

    async def _subscribe_anew(self) -> None:
        async with self._lock:
            if self._pubsub is not None:
                with contextlib.suppress(RedisError, OSError):
                    await self._pubsub.aclose()
            self._pubsub = self._partition.blocking.pubsub()
            if self._channels:
                await self._pubsub.subscribe(*self._channels)
            self._broken = False

    def _wake_all(self) -> None:
        for events in self._events.values():
            for event in events:
                event.set()
        if self._listener is not None:
            self._listener("")

    async def aclose(self) -> None:
        """End the reader and close its connection."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        if self._pubsub is not None:
            with contextlib.suppress(RedisError, OSError):
                await self._pubsub.aclose()
            self._pubsub = None
