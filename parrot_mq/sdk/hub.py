"""Waiting for many variables with few round trips: one task per partition that batches what its waiters need."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import TypeVar

from redis.exceptions import RedisError

from parrot_mq.errors import ParrotError, StoreError, StoreUnavailable
from parrot_mq.messages import Objective, VariableState
from parrot_mq.sdk.awaited import Awaited, Listener
from parrot_mq.sdk.taps import Taps
from parrot_mq.store.joined import Spawn
from parrot_mq.store.partition import RETRY_S, Partition
from parrot_mq.store.producer import ProducerStore
from parrot_mq.store.reader import Reader
from parrot_mq.store.records import Outcome
from parrot_mq.store.waiters import Waiters

T = TypeVar("T")

PIPELINE = 500
"""Most commands in one pipeline."""
CROWD = 64
CROWD_DELAY_S = 0.002
"""With more than ``CROWD`` waiting, wake-ups are collected for this long: throughput matters more than each one."""
GRACE_POLL_S = 0.1
"""How often an id that nobody has made yet is looked for."""


class Hub:
    """Waits for variables of one partition.

    The waiter protocol, for all waiters at once: subscribe to their channels; state their objectives, which also
    reads the states; read what is resolved; then read again whatever pub/sub names, and everything every
    ``recheck_s``. ``run`` is the task that does it. ``taps`` reads output streams, in tasks that ``spawn`` runs.
    """

    def __init__(self, partition: Partition, recheck_s: float, spawn: Spawn) -> None:
        self.taps = Taps(partition, spawn)
        self._reader = Reader(partition)
        self._producer = ProducerStore(partition)
        self._waiters = Waiters(partition)
        self._waiters.listen(self._woken)
        self._recheck_s = recheck_s
        self._entries: dict[str, Awaited] = {}
        self._new: dict[str, Awaited] = {}
        self._dirty: dict[str, None] = {}
        self._missing: set[str] = set()
        self._users: Counter[str] = Counter()
        self._wanted: set[str] = set()
        self._unused: set[str] = set()
        self._next_scan = 0.0
        self._work = asyncio.Event()
        self._closed: ParrotError | None = None

    # For waiters -----------------------------------------------------------------------------------------------------

    def wait(
        self, variable_id: str, channel: str, grace_s: float, objective: Objective | None, listener: Listener
    ) -> None:
        """Tell ``listener`` once the variable is resolved, or if nobody has made it within ``grace_s``."""
        if self._closed is not None:
            listener.arrived(variable_id, self._closed)
            return
        entry = self._listen(variable_id, channel, grace_s, listener)
        if objective is not None and (entry.objective is None or objective.strictness > entry.objective.strictness):
            entry.objective = objective
        self._new[variable_id] = entry
        self._work.set()

    def expect(self, variable_id: str, channel: str, listener: Listener) -> None:
        """Tell ``listener`` once the variable is resolved, which a submit that has yet to be sent will make.

        ``made`` follows when that is settled. Until then the variable is read only if pub/sub says so.
        """
        if self._closed is not None:
            listener.arrived(variable_id, self._closed)
            return
        entry = self._listen(variable_id, channel, 0.0, listener)
        entry.is_expected = True
        if not self._waiters.is_subscribed(channel):  # meanwhile
            self._wanted.add(channel)
            self._work.set()

    def made(self, variable_id: str, channel: str, is_watched: bool) -> bool:
        """End the expectation of a variable; return whether what becomes of it will be told without reading it first.

        It will if ``is_watched``: if its submit was confirmed and ``channel`` was subscribed to before that was sent.
        An id is random and made here, so nothing can happen to its variable before the submit is sent, and that was
        after the listener came, for it was expected. The entry keeps its channel subscribed. What happens then is told
        on the channel, or the message is lost with its connection: then the confirmation on the new one, which comes
        later, has everything read.
        """
        entry = self._entries.get(variable_id)
        if entry is None:
            return False
        if entry.is_expected:
            entry.is_expected = False
            entry.is_told = is_watched and entry.channel == channel
            entry.checked_at = time.monotonic()
            if not entry.is_told:
                self._new[variable_id] = entry
                self._work.set()
        return entry.is_told

    def is_subscribed(self, channel: str) -> bool:
        """Whether what is published on ``channel`` from now on will be noticed."""
        return self._waiters.is_subscribed(channel)

    def forget(self, variable_id: str, listener: Listener) -> None:
        """End a wait that has not ended by itself."""
        entry = self._entries.get(variable_id)
        if entry is not None and listener in entry.listeners:
            del entry.listeners[listener]
            if not entry.listeners:
                self._remove(variable_id)

    def _listen(self, variable_id: str, channel: str, grace_s: float, listener: Listener) -> Awaited:
        entry = self._entries.get(variable_id)
        if entry is None:
            entry = self._entries[variable_id] = Awaited(channel, grace_s)
            self.acquire(channel)
        entry.listeners[listener] = None
        return entry

    def acquire(self, channel: str) -> None:
        """Keep ``channel`` subscribed, once it is, until ``release``."""
        self._users[channel] += 1
        self._unused.discard(channel)

    def release(self, channel: str) -> None:
        """Undo one ``acquire``."""
        self._users[channel] -= 1
        if self._users[channel] <= 0:
            del self._users[channel]
            self._unused.add(channel)

    @contextlib.asynccontextmanager
    async def watching(self, variable_id: str, channel: str) -> AsyncIterator[asyncio.Event]:
        """Subscribe, and yield an event that is set whenever the variable changes or its stream grows."""
        self.acquire(channel)
        try:
            with self._waiters.watching(variable_id) as event:
                await self._subscribe([channel])
                yield event
        finally:
            self.release(channel)

    # The task --------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve the waiters until closed or cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while self._closed is None:
                alarm = loop.call_later(GRACE_POLL_S if self._missing else self._recheck_s, self._work.set)
                try:
                    await self._work.wait()
                finally:
                    alarm.cancel()
                if len(self._entries) > CROWD:
                    await asyncio.sleep(CROWD_DELAY_S)
                self._work.clear()
                try:
                    await self._round()
                except ParrotError as error:
                    self._fail_all(error)
                except RedisError as error:
                    self._fail_all(StoreError(f"Redis refused to answer: {error}"))
        finally:
            await self._waiters.aclose()

    def close(self, error: ParrotError) -> None:
        """Tell every waiter, those to come included, that there is no waiting any more."""
        self._closed = self._closed or error
        self._fail_all(error)
        self._work.set()

    async def _round(self) -> None:
        new, self._new = self._new, {}
        dirty, self._dirty = self._dirty, {}
        for vid in self._missing:
            dirty[vid] = None
        wanted, self._wanted = self._wanted, set()
        if new or wanted:
            await self._subscribe(list(wanted.union(entry.channel for entry in new.values())))
            for part in _parts([(vid, entry.objective) for vid, entry in new.items() if entry.objective is not None]):
                states = await self._producer.wants(part)
                self._apply_states([vid for vid, _ in part], states, dirty)
            for ids in _parts([vid for vid, entry in new.items() if entry.objective is None]):
                self._apply_states(ids, await self._reader.states(ids), dirty)
        for ids in _parts(self._stale()):
            self._apply_states(ids, await self._reader.states(ids), dirty)
        for ids in _parts([vid for vid in dirty if vid in self._entries]):
            for vid, record in zip(ids, await self._reader.outcomes(ids), strict=True):
                self._apply(vid, record)
        unused, self._unused = self._unused, set()
        for channel in unused:
            if channel not in self._users:  # nobody has come for it since
                await self._waiters.unsubscribe(channel)

    async def _subscribe(self, channels: Sequence[str]) -> None:
        try:
            async with asyncio.timeout(RETRY_S):
                await self._waiters.subscribe(channels)
        except TimeoutError:
            raise StoreUnavailable(f"Redis has not confirmed a subscription for {RETRY_S:g} s") from None

    def _stale(self) -> list[str]:
        """Return what was not looked at for ``recheck_s``; all entries are walked only a few times in that time."""
        now = time.monotonic()
        if now < self._next_scan:
            return []
        self._next_scan = now + self._recheck_s / 4
        return [
            vid
            for vid, entry in self._entries.items()
            if now - entry.checked_at >= self._recheck_s and not entry.is_expected
        ]

    def _apply_states(self, ids: Sequence[str], states: Sequence[VariableState | None], dirty: dict[str, None]) -> None:
        now = time.monotonic()
        for vid, state in zip(ids, states, strict=True):
            if entry := self._entries.get(vid):
                entry.checked_at = now
                if state is not VariableState.PENDING:
                    dirty[vid] = None

    def _apply(self, vid: str, record: Outcome | None) -> None:
        entry = self._entries.get(vid)
        if entry is None:
            return
        now = entry.checked_at = time.monotonic()
        if record is None and entry.is_expected:
            return
        if record is None:
            entry.missing_since = entry.missing_since or now
            self._missing.add(vid)
            if now - entry.missing_since >= entry.grace_s:
                self._deliver(vid, None)
            return
        if entry.missing_since is not None:  # made by now: its objective is still to be stated
            entry.missing_since = None
            self._missing.discard(vid)
            self._new[vid] = entry
            self._work.set()
        if record.state is not VariableState.PENDING:
            self._deliver(vid, record)

    def _deliver(self, vid: str, outcome: Outcome | ParrotError | None) -> None:
        listeners = self._entries[vid].listeners
        self._remove(vid)
        for listener in listeners:
            listener.arrived(vid, outcome)

    def _remove(self, vid: str) -> None:
        entry = self._entries.pop(vid)
        self._new.pop(vid, None)
        self._missing.discard(vid)
        self.release(entry.channel)

    def _fail_all(self, error: ParrotError) -> None:
        for vid in list(self._entries):
            self._deliver(vid, error)

    def _woken(self, variable_id: str) -> None:
        """Note a wake-up: for one variable, or (an empty id) for all since messages may have been missed."""
        if variable_id:
            if variable_id in self._entries:
                self._dirty[variable_id] = None
                self._work.set()
        elif self._entries:
            self._dirty.update(dict.fromkeys(self._entries))
            self._work.set()


def _parts(items: Sequence[T]) -> Iterable[Sequence[T]]:
    return (items[start : start + PIPELINE] for start in range(0, len(items), PIPELINE))
