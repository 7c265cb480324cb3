"""Waiting for variables: pub/sub wakes, the state decides."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from parrot_mq.store.partition import Partition

RECONNECT_S = 0.05


class Waiters:
    """Wakes whoever waits for a variable of one partition.

    The protocol: subscribe and wait for the confirmation; register; read the state; wait for a wake-up, with a
    re-check every few seconds. A confirmation that comes again means a new connection: everybody is woken, since a
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
                    self._broken = True
                    await self._disconnect()  # which ends the reader's wait; it then subscribes anew to all of them
                if self._task is None:
                    self._task = asyncio.create_task(self._run(), name="parrot_mq-waiters")
        for channel in channels:
            if event := self._channels.get(channel):
                await event.wait()

    def is_subscribed(self, channel: str) -> bool:
        """Whether Redis has confirmed ``channel``: what is published there from now on wakes somebody.

        A message that is lost with its connection counts as told: the new connection's confirmation, which comes after
        it, wakes everybody.
        """
        confirmed = self._channels.get(channel)
        return confirmed is not None and confirmed.is_set()

    async def unsubscribe(self, channel: str) -> None:
        """Forget a channel, from this moment on: whoever subscribes to it again waits for a new confirmation."""
        if self._channels.pop(channel, None) is None:
            return
        async with self._lock:
            if self._pubsub is not None and channel not in self._channels:
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
                if self._broken:
                    await asyncio.sleep(RECONNECT_S)
                self._broken = True

    async def _read(self) -> None:
        """Take messages until the connection breaks.

        They are read from the connection itself: ``PubSub.get_message`` costs ten times as much, mostly for a time-out
        and for a reconnect of its own, where ``_subscribe_anew`` is ours.
        """
        pubsub = self._pubsub
        connection = pubsub.connection if pubsub is not None else None
        if pubsub is None or connection is None:
            await asyncio.sleep(RECONNECT_S)
            return
        while not self._broken:
            answer = await connection.read_response(disconnect_on_error=False)
            if answer is None:
                continue
            kind, channel, data = answer
            if kind == "message":
                self._wake(data)
            else:
                await pubsub.handle_message(answer)  # keeps its own list of channels
                if kind == "subscribe":
                    self._confirm(channel)

    def _confirm(self, channel: str) -> None:
        confirmed = self._channels.get(channel)
        if confirmed is not None and not confirmed.is_set():
            confirmed.set()
        else:
            self._wake_all()

    def _wake(self, message: str) -> None:
        for variable_id in message.split():
            for event in self._events.get(variable_id, ()):
                event.set()
            if self._listener is not None:
                self._listener(variable_id)

    async def _subscribe_anew(self) -> None:
        async with self._lock:
            await self._disconnect()
            self._pubsub = self._partition.blocking.pubsub()
            if self._channels:
                await self._pubsub.subscribe(*self._channels)
            self._broken = False

    async def _disconnect(self) -> None:
        if self._pubsub is not None:
            with contextlib.suppress(RedisError, OSError):
                await self._pubsub.aclose()
            self._pubsub = None

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
        await self._disconnect()
