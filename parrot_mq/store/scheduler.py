"""What the scheduler does to the store: intake, dispatch, reaping, fan-out, epochs, imports."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Awaitable, Mapping, Sequence
from typing import cast

import orjson

from parrot_mq.errors import ErrorRecord, SubmitError
from parrot_mq.keys import ENGINES, LEADER
from parrot_mq.messages import FunctionRecord, LengthHistogram, PrefixHint, VariableState
from parrot_mq.store.answers import checked
from parrot_mq.store.connect import Store
from parrot_mq.store.partition import Partition
from parrot_mq.store.reader import Reader
from parrot_mq.store.records import DispatchItem, Lane, Value


@dataclasses.dataclass(frozen=True, slots=True)
class IntakeEntry:
    """A hint from the intake stream; ``kind`` and ``fields`` as docs/redis.md lists them.

    Kinds and their fields (lists are space-separated; ``id:rev`` pairs carry the object's revision):

    - ``submitted``: session, tenant, batch, last, specs (JSON list), states (``rid:rev:state`` ...), inputs (resolved
      inputs, ``vid:digest:bytes`` ...), objectives (lines ``vid JSON``: of outputs that had one before their producer)
    - ``resolved``: variables (``vid:digest:bytes`` ... that have a value now), done (``rid:rev:num_output_tokens`` ...
      that made them), ready (``rid:rev`` ... that became ready by it)
    - ``ready``: ready (``rid:rev`` ... that became ready or were given back), dead (``rid:rev`` ... that failed or were
      cancelled)
    - ``released``: request, rev, state (waiting: in its back-off)
    - ``objectives``: objectives (lines ``vid JSON``: stricter ones)
    - ``discarded``: requests (ids)
    - ``dispatched``: engine, requests (``rid:rev:fence`` ... that went by a lane)
    - ``work``: the work stream has an entry
    - ``import``: variable (of another partition that a request here needs), tenant
    - ``outbox``: the outbox stream has an entry
    - ``why``: requests (somebody asks why they sit where they do: see ``store.why``)
    - ``engine``: engine (registered, changed its state, or left)
    """

    id: str
    kind: str
    fields: dict[str, str]


class SchedulerStore:
    """State changes that the leading scheduler makes, in one partition. ``epoch`` fences out former leaders."""

    def __init__(self, partition: Partition, epoch: int = 0) -> None:
        self.partition = partition
        self.epoch = epoch

    async def read_intake(self, after: str, *, block_ms: int | None, count: int = 1000) -> list[IntakeEntry]:
        """Return intake entries after the id ``after``, waiting up to ``block_ms`` (None: not at all) for one."""
        redis = self.partition.redis if block_ms is None else self.partition.blocking
        answer = await redis.xread({self.partition.keys.intake: after}, count=count, block=block_ms)
        return [IntakeEntry(i, fields.pop("kind", ""), fields) for i, fields in (answer[0][1] if answer else [])]

    async def last_intake_id(self) -> str:
        """Return the id of the newest intake entry, "0-0" if there has been none."""
        entries = await self.partition.robust(
            lambda: self.partition.redis.xrevrange(self.partition.keys.intake, "+", "-", count=1)
        )
        return str(entries[0][0]) if entries else "0-0"

    async def trim_intake(self, applied: str) -> None:
        """Drop intake entries older than the id ``applied``."""
        await self.partition.robust(
            lambda: self.partition.redis.xtrim(self.partition.keys.intake, minid=applied, approximate=True)
        )

    async def dispatch(self, items: Sequence[DispatchItem], tokens: Sequence[str]) -> list[str]:
        """Put ready requests into engines' queues; returns each one's fence, empty where it was not ready (any more)
        or the engine is gone. ``tokens`` are the random parts of the fences. Raises ``Fenced`` for an old epoch.
        """
        args: list[str | int] = [self.epoch]
        for item, token in zip(items, tokens, strict=True):
            args += [item.request, item.engine, token, item.plan_json, item.why_json]
        return list(checked(await self.partition.call("dispatch", *args))[0])

    async def grant(self, lanes: Mapping[str, Lane], *, share: int = 1, single_flight: bool = True) -> None:
        """Make ``lanes`` (by model) the only ones, with the part of their credits that one of ``share`` partitions
        gets, at least 1. Without ``single_flight`` the engine is told to run each request by itself. Raises ``Fenced``
        for an old epoch.
        """
        args: list[str | int] = [self.epoch, "" if single_flight else '"flight":""']
        for model, lane in lanes.items():
            args += [model, lane.engine, max(1, lane.credits // share)]
        checked(await self.partition.call("grant", *args))

    async def learn(self, learned: Mapping[tuple[str, str], Mapping[int, LengthHistogram]]) -> int:
        """Keep the lengths of outputs (by output) of functions (by tenant and digest) with their templates; returns how
        many of them this partition has. Raises ``Fenced`` for an old epoch, ``Overloaded`` while memory is full.
        """
        args: list[str | int] = [self.epoch]
        for (tenant, digest), lengths in learned.items():
            data = {str(output): histogram.to_data() for output, histogram in lengths.items()}
            args += [tenant, digest, orjson.dumps(data).decode()]
        return int(checked(await self.partition.call("learn", *args))[0])

    async def template(self, tenant: str, digest: str) -> tuple[FunctionRecord | None, dict[int, LengthHistogram]]:
        """Return a template (None: unknown), and what was learned of how long its outputs get."""
        key = self.partition.keys.function(tenant, digest)
        name, segments, learned = await self.partition.robust(
            lambda: cast(
                Awaitable[list[str | None]],
                self.partition.redis.hmget(key, ["name", "segments", "output_tokens"]),
            )
        )
        if segments is None:
            return None, {}
        known = orjson.loads(learned or "{}")
        lengths = {int(output): LengthHistogram.from_data(data) for output, data in known.items()}
        return FunctionRecord.from_json(name or "", segments), lengths

    async def reject(self, request: str, error: ErrorRecord) -> None:
        """Fail a request that was never started (its model does not exist): it and everything downstream."""
        checked(await self.partition.call("reject", self.epoch, request, error.to_json()))

    async def reap(self) -> bool:
        """Redeliver requests whose lease ran out, and release those whose back-off ended; True: call again, more."""
        return bool(int(checked(await self.partition.call("reap", self.epoch))[0]))

    async def reap_engine(self, engine_id: str, running: Sequence[str]) -> tuple[bool, bool]:
        """Take back what an engine without heartbeat holds: its queue, and those of ``running`` that it still runs.

        Returns (dead, more): whether it has no heartbeat; whether to call again. Once nothing is left its streams are
        deleted.
        """
        dead, more = checked(await self.partition.call("reap_engine", self.epoch, engine_id, *running))
        return bool(int(dead)), bool(int(more))

    async def propagate(self) -> bool:
        """Continue large fan-outs from the work stream; True: there is more."""
        return bool(int(checked(await self.partition.call("propagate", self.epoch))[0]))

    async def raise_epoch(self, epoch: int) -> int:
        """Make ``epoch`` the newest if it is; return the newest."""
        return int(checked(await self.partition.call("raise_epoch", epoch))[0])

    async def control(self, engine_id: str, kind: str, request: str, fence: str = "", text: str = "") -> None:
        """Send a control message to an engine; nothing is sent to one whose streams are gone."""
        await self.partition.call("control", engine_id, kind, request, fence, text)

    async def prefill(self, engine_id: str, hint: PrefixHint) -> None:
        """Have an engine compute a prefix ahead, when it has nothing better to do."""
        await self.control(engine_id, "prefill", "", text=hint.to_json())

    async def retain(self, engine_id: str, hint: PrefixHint) -> None:
        """Have an engine keep a prefix in its cache for ``hint.retain_s``, or until ``unretain``."""
        await self.control(engine_id, "retain", "", text=hint.to_json())

    async def unretain(self, engine_id: str, key: str) -> None:
        """Have an engine keep nothing more for a hint's ``key``."""
        await self.control(engine_id, "release", "", text=key)

    async def expired_sessions(self, count: int = 20) -> list[str]:
        """Return sessions whose time ran out and that have nothing live; those that have are put off."""
        return list(checked(await self.partition.call("expired_sessions", self.epoch, count))[0])


async def take_leadership(store: Store, scheduler_id: str, ttl_s: float) -> bool:
    """Take or keep the leader's key for ``ttl_s``; False while another scheduler has it.

    This only spares two schedulers from doing the same work; what makes them safe are epochs and fences.
    """
    ttl_ms = round(ttl_s * 1000)
    robust = store.partitions[0].robust
    # Our own key is extended, not set: a Redis whose memory is full refuses SET, and must not lose its leader by it.
    leader = await robust(lambda: store.client.get(LEADER))
    if leader == scheduler_id and await robust(lambda: store.client.pexpire(LEADER, ttl_ms)):
        return True
    if leader is not None and leader != scheduler_id:
        return False
    await robust(lambda: store.client.set(LEADER, scheduler_id, nx=True, px=ttl_ms))
    return bool(await robust(lambda: store.client.get(LEADER)) == scheduler_id)


async def drop_leadership(store: Store, scheduler_id: str) -> None:
    """Give the leader's key up if we hold it, so that another scheduler need not wait for it to expire."""
    if await store.partitions[0].robust(lambda: store.client.get(LEADER)) == scheduler_id:
        await store.partitions[0].robust(lambda: store.client.delete(LEADER))


async def new_epoch(store: Store) -> int:
    """Raise the epoch in every partition above all that were used; return it."""
    while True:
        epoch = 1 + max([await SchedulerStore(partition).raise_epoch(0) for partition in store.partitions])
        newest = [await SchedulerStore(partition).raise_epoch(epoch) for partition in store.partitions]
        if all(value == epoch for value in newest):
            return epoch


async def forget_engine(store: Store, engine_id: str) -> None:
    """Take a dead engine, of which nothing is left, off the list of engines."""
    await store.partitions[0].robust(lambda: store.client.zrem(ENGINES, engine_id))


async def import_variable(store: Store, importer: int, variable_id: str, tenant: str) -> str:
    """Register partition ``importer`` for a variable of another partition; deliver it if it is resolved already.

    Returns ``pending``, ``delivered``, ``unknown`` or ``forbidden`` (another tenant's).
    """
    home = store.of(variable_id, "v")
    status = str(checked(await home.call("import_variable", variable_id, importer, tenant))[0])
    if status == "resolved":
        await _deliver(store, variable_id, importer)
        return "delivered"
    return status


async def fail_import(store: Store, importer: int, variable_id: str, error: ErrorRecord) -> None:
    """Set the local stub of a variable that cannot be imported to ``error``; a stub that is gone wants none."""
    await store.partition(importer).call(
        "set_variable", variable_id, "error", error.to_json(), "", 0, "", "", "", "stub"
    )


async def relay_outbox(store: Store, partition: Partition, count: int = 100) -> int:
    """Deliver resolved variables to the partitions that imported them; returns how many entries were relayed."""
    key = partition.keys.outbox
    entries = await partition.robust(lambda: partition.redis.xrange(key, "-", "+", count))
    for entry_id, fields in entries:
        for importer in fields["importers"].split():
            await _deliver(store, fields["variable"], int(importer))
        await partition.call("relayed", entry_id)
    return len(entries)


async def _deliver(store: Store, variable_id: str, importer: int) -> None:
    record = await Reader(store.of(variable_id, "v")).variable(variable_id)
    target = store.partition(importer)
    if record is None or (record.state is VariableState.READY and record.value is None):  # deleted while it was read
        error = ErrorRecord("Expired", f"variable {variable_id} expired before it reached partition {importer}")
        await fail_import(store, importer, variable_id, error)
    elif record.state is VariableState.ERROR and record.error is not None:
        await fail_import(store, importer, variable_id, record.error)
    elif record.state is VariableState.READY:
        fence = store.ids.token() if record.value_fence else ""
        assert record.value is not None
        value = Value(record.value, record.size_bytes, record.digest, fence, record.token_ids, record.tokens_by)
        await target.stage(variable_id, value)
        answer = await target.call(
            "set_variable", variable_id, "value", value.inline, value.fence, value.size_bytes, value.digest,
            value.tokens_text, value.tokens_by, "stub",
        )  # fmt: skip
        # A stub that is gone with its session, or that was cancelled, wants no value; that must not stop the relay.
        with contextlib.suppress(SubmitError):
            checked(answer)
