"""What an engine worker does to the store: heartbeat, claim, renew, stream, complete, fail."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from parrot_mq.errors import ErrorRecord, Fenced, Overloaded, StoreError
from parrot_mq.keys import ENGINES, GROUP
from parrot_mq.messages import EngineRecord, FunctionRecord
from parrot_mq.store.answers import checked
from parrot_mq.store.cluster import moved_to
from parrot_mq.store.completion import Completion, complete_many
from parrot_mq.store.connect import Store
from parrot_mq.store.emission import Emission, emit_many
from parrot_mq.store.partition import Partition
from parrot_mq.store.records import Assignment, Claim, Control, InputValue, Usage, Value

RENEW_PART = 500
"""Leases in one script call, about 2 ms of Redis."""


@dataclasses.dataclass(frozen=True, slots=True)
class Renewal:
    """What ``renew`` found: requests that are ``lost`` to another attempt, and those that were ``cancelled``."""

    lost: tuple[str, ...]
    cancelled: tuple[str, ...]


def _assignment(entry_id: str, fields: dict[str, str]) -> Assignment:
    request, fence = fields["request"], fields["fence"]
    offer = None
    if "spec" in fields:
        inputs = [
            InputValue(vid, fields[f"text:{i}"], "", _ids(fields.get(f"ids:{i}", "")), fields.get(f"by:{i}", ""))
            for i, vid in enumerate(fields["inputs"].split(), 1)
        ]
        offer = Claim(
            request=request,
            fence=fence,
            attempt=int(fields["attempt"]),
            session=fields["session"],
            tenant=fields["tenant"],
            spec_json=fields["spec"],
            inputs=tuple(inputs),
            streamed=False,
        )
    return Assignment(entry_id, request, fence, fields.get("plan", "{}"), offer)


def _claim(assignment: Assignment, answer: list[Any]) -> Claim | None:
    if not answer:
        return None
    attempt, streamed, published, *whole = answer
    if assignment.offer is not None:
        return dataclasses.replace(
            assignment.offer, attempt=int(attempt), streamed=streamed == "1", published_ids=_ids(published)
        )
    session, tenant, spec, inputs = whole
    return Claim(
        request=assignment.request,
        fence=assignment.fence,
        attempt=int(attempt),
        session=session,
        tenant=tenant,
        spec_json=spec,
        inputs=tuple(
            InputValue(vid, None if reference else text, reference, _ids(ids), tokens_by)
            for vid, text, reference, ids, tokens_by in inputs
        ),
        streamed=streamed == "1",
        published_ids=_ids(published),
    )


def _ids(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split()))


class EngineStore:
    """State changes that an engine makes, in one partition."""

    def __init__(self, partition: Partition) -> None:
        self.partition = partition

    async def heartbeat(self, record: EngineRecord) -> None:
        """Write the engine's record, valid for ``heartbeat_ttl_s``; the first one makes its streams."""
        fields = [text for pair in record.to_fields().items() for text in pair]
        ttl_ms = round(self.partition.settings.heartbeat_ttl_s * 1000)
        await self.partition.call("heartbeat", record.id, GROUP, ttl_ms, *fields)

    async def leave(self, engine_id: str) -> None:
        """Remove the engine's heartbeat; the reaper gives what it still holds to others."""
        await self.partition.call("leave", engine_id)

    async def receive(
        self, engine_id: str, control_after: str, *, block_ms: int, count: int = 256
    ) -> tuple[list[Assignment], list[Control]]:
        """Wait up to ``block_ms`` for entries of the engine's queue and control streams.

        Assignments stay in the stream, pending, until ``start`` removes them; controls are read after the id
        ``control_after`` ("0" at first).
        """
        queue = self.partition.keys.engine_queue(engine_id)
        # Two streams, two commands: a group read and a plain read cannot be one. The queue is what is waited for;
        # a control message is also written to the queue as an empty entry, which wakes this read.
        entries = await self._read(
            lambda: self.partition.blocking.xreadgroup(
                GROUP, engine_id, {queue: ">"}, count=count, block=max(1, block_ms)
            ),
            engine_id,
        )
        assignments, wake = await self._sort(queue, entries)
        return assignments, await self._controls(engine_id, control_after, count) if wake else []

    async def receive_again(self, engine_id: str, control_after: str) -> tuple[list[Assignment], list[Control]]:
        """Return what was delivered to the engine before and is not claimed, and all controls after ``control_after``.

        For after a lost connection: what ``receive`` was just being given is pending, and never delivered again.
        """
        queue = self.partition.keys.engine_queue(engine_id)
        assignments: list[Assignment] = []
        after, count = "0", 256
        while True:
            entries = await self._read(
                lambda after=after: self.partition.redis.xreadgroup(  # type: ignore[misc]
                    GROUP, engine_id, {queue: after}, count=count
                ),
                engine_id,
            )
            assignments += (await self._sort(queue, entries))[0]
            if len(entries) < count:
                return assignments, await self._controls(engine_id, control_after, 10_000)
            after = entries[-1][0]

    async def is_registered(self, engine_id: str) -> bool:
        """Whether the engine's streams exist: they are made by its first heartbeat and deleted by the reaper."""
        key = self.partition.keys.engine_queue(engine_id)
        return bool(await self.partition.robust(lambda: self.partition.redis.exists(key)))

    async def _read(
        self, read: Callable[[], Awaitable[Any]], engine_id: str
    ) -> list[tuple[str, dict[str, str] | None]]:
        try:
            answer = await read()
        except ResponseError as error:
            if home := moved_to(error):
                self.partition.clients.move(*home)
                raise RedisConnectionError(f"the partition has moved to {home[0]}:{home[1]}") from None
            if str(error).startswith(("NOGROUP", "UNBLOCKED")):
                raise Fenced(f"the streams of engine {engine_id} are gone: the reaper took it for dead") from None
            raise
        return list(answer[0][1]) if answer else []

    async def _sort(
        self, queue: str, entries: Sequence[tuple[str, dict[str, str] | None]]
    ) -> tuple[list[Assignment], bool]:
        """Return the assignments among ``entries``, and whether there was a wake-up for controls (removed here)."""
        assignments, others = [], []
        for entry_id, fields in entries:
            if fields and "request" in fields:
                assignments.append(_assignment(entry_id, fields))
            else:
                others.append(entry_id)
        if others:
            await self.partition.robust(lambda: self.partition.redis.xack(queue, GROUP, *others))
            await self.partition.robust(lambda: self.partition.redis.xdel(queue, *others))
        return assignments, bool(others)

    async def _controls(self, engine_id: str, after: str, count: int) -> list[Control]:
        key = self.partition.keys.engine_control(engine_id)
        found = await self.partition.robust(lambda: self.partition.redis.xread({key: after}, count=count))
        return [
            Control(
                entry_id, fields["kind"], fields.get("request", ""), fields.get("fence", ""), fields.get("text", "")
            )
            for entry_id, fields in (found[0][1] if found else [])
        ]

    async def start(self, engine_id: str, assignments: Sequence[Assignment]) -> list[Claim | None]:
        """Claim assignments: take the lease and remove the stream entries; None for each that is no longer ours.

        The same call again gives the same answer. Inputs of ``inline_bytes`` and more come as references: ``fetch``.
        """
        args: list[str] = [engine_id, GROUP]
        for assignment in assignments:
            offered = "1" if assignment.offer is not None else ""
            args += [assignment.entry_id, assignment.request, assignment.fence, offered]
        (answers,) = checked(await self.partition.call("start", *args))
        return [_claim(assignment, answer) for assignment, answer in zip(assignments, answers, strict=True)]

    async def fetch(self, reference: str) -> str | None:
        """Return the large value at the key ``reference``, None if it has been deleted."""
        text: str | None = await self.partition.robust(lambda: self.partition.redis.get(reference))
        return text

    async def function(self, tenant: str, digest: str) -> FunctionRecord | None:
        """Return a template; templates never change, so callers may keep it."""
        key = self.partition.keys.function(tenant, digest)
        name, segments = await self.partition.robust(
            lambda: cast(Awaitable[list[str]], self.partition.redis.hmget(key, ["name", "segments"]))
        )
        return FunctionRecord.from_json(name, segments) if segments else None

    async def renew(self, engine_id: str, running: Sequence[tuple[str, str]]) -> Renewal:
        """Extend the leases of (request, fence) pairs; say which are lost or cancelled."""
        lost: list[str] = []
        cancelled: list[str] = []
        for start in range(0, len(running), RENEW_PART):
            args = [text for pair in running[start : start + RENEW_PART] for text in pair]
            more_lost, more_cancelled = checked(await self.partition.call("renew", engine_id, *args))
            lost += more_lost
            cancelled += more_cancelled
        return Renewal(tuple(lost), tuple(cancelled))

    async def emit(self, request: str, fence: str, offset: int, token_ids: Sequence[int], text: str) -> None:
        """Append a piece of output to the variable's stream; ``offset`` counts the tokens before it.

        Raises ``Fenced`` if the request belongs to another attempt by now.
        """
        (error,) = await self.emit_many([Emission(request, fence, offset, tuple(token_ids), text)])
        if error is not None:
            raise error

    async def emit_many(self, pieces: Sequence[Emission]) -> list[StoreError | None]:
        """``emit`` several, at most one of each request, in few calls; returns what each would have raised."""
        return await emit_many(self.partition, pieces)

    async def complete(
        self, request: str, fence: str, output: str, value: Value, usage: Usage, raw: Value | None = None
    ) -> None:
        """Set the output variable and finish the request, in one step.

        ``raw`` is the text before the transform, where there is one. The same call again is a no-op. Raises
        ``Fenced`` if the request belongs to another attempt by now, or was cancelled.
        """
        (error,) = await self.complete_many([Completion(request, fence, output, value, usage, raw)])
        if error is not None:
            raise error

    async def complete_many(self, completions: Sequence[Completion]) -> list[StoreError | None]:
        """``complete`` several in few calls; returns what each would have raised, None where nothing."""
        return await complete_many(self.partition, completions)

    async def fail(self, request: str, fence: str, error: ErrorRecord, *, retry: bool) -> None:
        """Report that an attempt failed: with ``retry`` it is run again after a back-off until its attempts are used
        up, then (or at once) its output and everything downstream get ``error``. Raises ``Fenced`` as ``complete``.
        """
        checked(await self.partition.call("fail", request, fence, error.to_json(), "1" if retry else ""))

    async def release(self, engine_id: str, held: Sequence[tuple[str, str]]) -> None:
        """Give (request, fence) pairs back unstarted, to be dispatched anew; not counted as an attempt."""
        args = [text for pair in held for text in pair]
        checked(await self.partition.call("release", engine_id, *args))


async def register(store: Store, record: EngineRecord) -> None:
    """Write an engine's heartbeat in every partition and list it among the engines.

    While Redis' memory is full an engine that is listed stays so; a new one gets ``Overloaded``.
    """
    for partition in store.partitions:
        await EngineStore(partition).heartbeat(record)
    robust, seen_ms = store.partitions[0].robust, await store.partitions[0].now_ms()
    try:
        await robust(lambda: store.client.zadd(ENGINES, {record.id: seen_ms}))
    except Overloaded:
        if await robust(lambda: store.client.zscore(ENGINES, record.id)) is None:
            raise


async def deregister(store: Store, engine_id: str) -> None:
    """Remove an engine's heartbeats; its streams are emptied and deleted by the reaper."""
    for partition in store.partitions:
        await EngineStore(partition).leave(engine_id)
