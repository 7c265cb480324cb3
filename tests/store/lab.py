"""One partition driven by hand: the tests play producer, scheduler and worker against the real scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import redis.asyncio

from parrot_mq.errors import ErrorRecord
from parrot_mq.keys import Keys, make_id
from parrot_mq.messages import (
    EngineRecord,
    EngineState,
    FunctionRecord,
    RequestSpec,
    Segment,
    SegmentKind,
)
from parrot_mq.settings import StoreSettings
from parrot_mq.store import EngineStore, Partition, ProducerStore, Reader, SchedulerStore, Store, encode_value
from parrot_mq.store.records import Assignment, Claim, DispatchItem, NewVariable, Usage

REAL = [pytest.param(kind, marks=pytest.mark.redis) for kind in ("redis", "valkey", "redis-6.2", "cluster")]
KINDS = [*REAL, pytest.param("fake")]
"""The servers that the fixture ``lab`` goes through. ``on_real_servers`` leaves fakeredis out, where it differs."""
on_real_servers = pytest.mark.parametrize("lab", REAL, indirect=True)

FUNCTION = FunctionRecord(
    "write",
    (Segment(SegmentKind.CONSTANT, "Write "), Segment(SegmentKind.INPUT, "a"), Segment(SegmentKind.OUTPUT, "b")),
)
FAILURE = ErrorRecord("EngineFailed", "the device is on fire", "", "e1", 1)

Submission = tuple[RequestSpec, tuple[str, ...]]
Snapshot = dict[str, Any]


async def snapshot(client: redis.asyncio.Redis, *, without: Sequence[str] = ()) -> Snapshot:
    """Return every key with its content; keys that end with one of ``without`` are left out."""
    found: Snapshot = {}
    async for key in client.scan_iter(count=1000):
        if any(key.endswith(end) for end in without):
            continue
        kind = await client.type(key)
        if kind == "hash":
            found[key] = await client.hgetall(key)
        elif kind == "set":
            found[key] = set(await client.smembers(key))
        elif kind == "zset":
            found[key] = dict(await client.zrange(key, 0, -1, withscores=True))
        elif kind == "stream":
            found[key] = await client.xrange(key)
        else:
            found[key] = await client.get(key)
    return found


class Lab:
    """Makes objects, submits them, and takes requests through their life one script at a time."""

    def __init__(self, store: Store, number: int = 0, settings: StoreSettings | None = None) -> None:
        self.store = store
        self.number = number
        base = store.partitions[number]
        self.partition = Partition(base.keys, base.clients, settings) if settings else base
        self.producer = ProducerStore(self.partition)
        self.engine = EngineStore(self.partition)
        self.scheduler = SchedulerStore(self.partition, epoch=1)
        self.reader = Reader(self.partition)

    def under(self, **settings: Any) -> Lab:
        """Return a lab on the same partition that works under other settings."""
        return Lab(self.store, self.number, StoreSettings(partitions=len(self.store.partitions), **settings))

    @property
    def keys(self) -> Keys:
        return self.partition.keys

    @property
    def redis(self) -> redis.asyncio.Redis:
        return self.partition.redis

    def id(self, kind: str) -> str:
        return make_id(self.number, kind, self.store.ids.token())

    async def snapshot(self, *, without: Sequence[str] = ()) -> Snapshot:
        return await snapshot(self.redis, without=without)

    # Producer

    async def session(self, tenant: str = "acme") -> str:
        session = self.id("s")
        await self.producer.open_session(session, tenant, "hash")
        return session

    def value(self, text: str) -> Any:
        return encode_value(text, self.partition.settings, self.store.ids.token())

    def variable(self, text: str | None = None, name: str = "x") -> NewVariable:
        return NewVariable(self.id("v"), name, None if text is None else self.value(text))

    def request(self, inputs: Sequence[NewVariable | str], output: NewVariable | str, **fields: Any) -> Submission:
        ids = tuple(i if isinstance(i, str) else i.id for i in inputs)
        defaults: Mapping[str, Any] = {
            "id": self.id("r"),
            "call": self.id("c"),
            "function": FUNCTION.digest,
            "function_name": FUNCTION.name,
            "prompt_end": 2,
            "bindings": {},
            "output": output if isinstance(output, str) else output.id,
            "output_name": "b",
        }
        return RequestSpec(**{**defaults, **fields}), ids

    async def submit(
        self,
        session: str,
        variables: Sequence[NewVariable] = (),
        requests: Sequence[Submission] = (),
        *,
        batch: str = "batch",
        last: bool = True,
        functions: Sequence[FunctionRecord] = (FUNCTION,),
    ) -> None:
        for variable in variables:
            if variable.value is not None:
                await self.producer.stage(variable.id, variable.value)
        await self.producer.submit(session, batch, functions, variables, requests, last=last)

    async def one(self, session: str, text: str = "a snake game", **fields: Any) -> tuple[str, str]:
        """Submit one request with one set input; return its id and its output's."""
        given, output = self.variable(text), self.variable()
        request = self.request([given], output, **fields)
        await self.submit(session, [given, output], [request], batch=self.store.ids.token())
        return request[0].id, output.id

    async def chain(self, session: str, length: int) -> tuple[list[str], list[str]]:
        """Submit requests of which each reads the one before; return request ids and output ids."""
        variables = [self.variable("start"), *(self.variable(name=f"step{i}") for i in range(length))]
        requests = [self.request([variables[i]], variables[i + 1]) for i in range(length)]
        await self.submit(session, variables, requests, batch=self.store.ids.token())
        return [spec.id for spec, _ in requests], [variable.id for variable in variables[1:]]

    # Engine and scheduler

    async def heartbeat(self, engine: str = "e1", state: EngineState = EngineState.READY) -> str:
        await self.engine.heartbeat(EngineRecord(engine, "sim", "m", state))
        return engine

    async def kill_engine(self, engine: str = "e1") -> None:
        """Let its heartbeat run out."""
        await self.redis.delete(self.keys.engine(engine))

    async def dispatch(self, request: str, engine: str = "e1") -> str:
        (fence,) = await self.scheduler.dispatch([DispatchItem(request, engine)], [self.store.ids.token()])
        return fence

    async def receive(self, engine: str = "e1") -> list[Assignment]:
        return (await self.engine.receive(engine, "0", block_ms=1))[0]

    async def start(self, request: str, engine: str = "e1") -> Claim:
        """Dispatch a ready request, receive it and claim it."""
        await self.heartbeat(engine)
        fence = await self.dispatch(request, engine)
        assignments = [a for a in await self.receive(engine) if a.fence == fence]
        (claim,) = await self.engine.start(engine, assignments)
        assert claim is not None
        assert claim.fence == fence
        return claim

    async def complete(self, claim: Claim, text: str = "done") -> None:
        request = await self.reader.request(claim.request)
        assert request is not None
        await self.complete_as(claim.request, claim.fence, request.output, text)

    async def complete_as(self, request: str, fence: str, output: str, text: str = "done") -> None:
        value = encode_value(text, self.partition.settings, fence)
        await self.engine.complete(request, fence, output, value, Usage(1, 0, 1, finish="stop"))

    async def run(self, request: str, text: str = "done", engine: str = "e1") -> None:
        """Take a ready request through to its end."""
        await self.complete(await self.start(request, engine), text)

    async def expire_lease(self, request: str) -> None:
        await self.redis.zadd(self.keys.leases, {request: 1}, xx=True)

    async def end_backoff(self, request: str) -> None:
        await self.redis.zadd(self.keys.delayed, {request: 1}, xx=True)

    # Reading

    async def state(self, request: str) -> str:
        return str(await self.redis.hget(self.keys.request(request), "state"))

    async def states(self, requests: Sequence[str]) -> list[str]:
        return [str(record and record.state) for record in await self.reader.requests(requests)]

    async def text(self, variable: str) -> str | None:
        record = await self.reader.variable(variable)
        assert record is not None
        return record.value

    async def error(self, variable: str) -> ErrorRecord:
        record = await self.reader.variable(variable)
        assert record is not None
        assert record.error is not None
        return record.error

    async def live(self, session: str) -> int:
        record = await self.reader.session(session)
        assert record is not None
        return record.live

    async def hints(self, kind: str = "") -> list[dict[str, str]]:
        """Return the fields of the intake entries so far, of one ``kind`` if given."""
        entries = await self.scheduler.read_intake("0", block_ms=None, count=100_000)
        return [{"kind": e.kind, **e.fields} for e in entries if kind in ("", e.kind)]

    async def propagate(self) -> int:
        """Continue fan-outs until nothing is left; return the number of steps."""
        steps = 1
        while await self.scheduler.propagate():
            steps += 1
        return steps
