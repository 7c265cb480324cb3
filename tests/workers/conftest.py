"""Engine workers under test: an application and a scheduler in small, and workers that run inside the test."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import re
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, TypeVar

import fakeredis
import pytest
import redis

from parrot_mq.keys import make_id
from parrot_mq.messages import (
    Binding,
    CostModel,
    EngineRecord,
    EngineState,
    FunctionRecord,
    RequestSpec,
    SamplingParams,
    Segment,
    SegmentKind,
    VariableState,
)
from parrot_mq.settings import StoreSettings, WorkerSettings
from parrot_mq.store import ProducerStore, Reader, SchedulerStore, Store, connect, encode_value
from parrot_mq.store.reader import engines
from parrot_mq.store.records import DispatchItem, NewVariable, RequestRecord, VariableRecord
from parrot_workers.engine.port import EnginePort, SequenceInput, SequenceOutput
from parrot_workers.sim import InstantClock, SimEngine
from parrot_workers.worker import EngineWorker

OpenStore = Callable[..., Awaitable[Store]]
T = TypeVar("T")
PATIENCE_S = 30.0


async def _eventually(probe: Callable[[], Awaitable[T | None]]) -> T:
    deadline_s = time.monotonic() + PATIENCE_S
    while not (found := await probe()):
        assert time.monotonic() < deadline_s, "it never came to that"
        await asyncio.sleep(0.01)
    return found


class GatedEngine(SimEngine):
    """Makes no step that is not permitted, so that a test decides how far a run gets."""

    def __init__(self, **options: Any) -> None:
        super().__init__(cost=CostModel(0, 0, 0), **options)
        self._permits = threading.Semaphore(0)
        self.added: list[SequenceInput] = []
        self.aborted: list[str] = []
        self.num_finished = 0

    def permit(self, steps: int = 1_000_000) -> None:
        """Allow so many more steps (to the end, unless said)."""
        self._permits.release(steps)

    def add(self, sequence: SequenceInput) -> None:
        self.added.append(sequence)
        super().add(sequence)

    def abort(self, sequence_id: str) -> None:
        self.aborted.append(sequence_id)
        super().abort(sequence_id)

    def step(self) -> list[SequenceOutput]:
        assert self._permits.acquire(timeout=PATIENCE_S), "the test has forgotten this engine"
        outputs = super().step()
        self.num_finished += sum(output.finish is not None for output in outputs)
        return outputs

    def close(self) -> None:
        self.permit()
        super().close()


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """A submitted request."""

    request: str
    output: str


class Desk:
    """An application and a scheduler in small, in one partition of a store."""

    def __init__(self, store: Store, number: int = 0, tenant: str = "acme") -> None:
        self.store = store
        self.tenant = tenant
        self.number = number
        partition = store.partition(number)
        self.producer, self.reader = ProducerStore(partition), Reader(partition)
        self.scheduler = SchedulerStore(partition)
        self.session = make_id(number, "s", store.ids.token())
        self._opened = False

    async def ask(self, template: str, *, dispatch_to: str = "", plan: str = "{}", **options: Any) -> Asked:
        """Submit one request for ``template`` ("... {{name}} ..."; its output comes last), with values by name.

        ``options`` holds ``values`` and all that ``RequestSpec`` has. With ``dispatch_to`` it is put into that engine's
        queue.
        """
        if not self._opened:
            await self.producer.open_session(self.session, self.tenant)
            self._opened = True
        asked, function, variables, spec = self._make(template, **options)
        for variable in variables:
            if variable.value is not None:
                await self.producer.stage(variable.id, variable.value)
        request = (spec, spec.inputs(function))
        await self.producer.submit(self.session, self.store.ids.token(), [function], variables, [request], last=True)
        if dispatch_to:
            await self.dispatch(asked, dispatch_to, plan)
        return asked

    def _make(
        self, template: str, values: dict[str, str] | None = None, sampling: dict[str, Any] | None = None, **spec: Any
    ) -> tuple[Asked, FunctionRecord, list[NewVariable], RequestSpec]:
        values, segments, bindings, variables = values or {}, [], {}, []
        for constant, name in re.findall(r"([^{]*)(?:\{\{(\w+)\}\})?", template):
            if constant:
                segments.append(Segment(SegmentKind.CONSTANT, constant))
            if name:
                segments.append(Segment(SegmentKind.INPUT, name))
                new = make_id(self.number, "v", self.store.ids.token())
                bindings[name] = Binding(variable=new)
                value = encode_value(values[name], self.store.settings, self.store.ids.token())
                variables.append(NewVariable(new, name, value))
        end = len(segments)
        segments.append(Segment(SegmentKind.OUTPUT, "answer"))
        asked = Asked(
            make_id(self.number, "r", self.store.ids.token()), make_id(self.number, "v", self.store.ids.token())
        )
        variables.append(NewVariable(asked.output, "answer"))
        function = FunctionRecord("answer_it", tuple(segments))
        made = RequestSpec(
            id=asked.request,
            call=make_id(self.number, "c", self.store.ids.token()),
            function=function.digest,
            function_name="answer_it",
            prompt_end=end,
            bindings=bindings | spec.pop("bindings", {}),
            output=asked.output,
            output_name="answer",
            sampling=SamplingParams(**(sampling or {})),
            **spec,
        )
        return asked, function, variables, made

    async def dispatch(self, asked: Asked, engine_id: str, plan: str = "{}") -> str:
        """Put a request into an engine's queue; returns its fence."""
        (fence,) = await self.scheduler.dispatch(
            [DispatchItem(asked.request, engine_id, plan)], [self.store.ids.token()]
        )
        assert fence, f"{asked} could not be dispatched to {engine_id}"
        return fence

    async def resolved(self, asked: Asked) -> VariableRecord:
        """Wait until the output is set."""

        async def probe() -> VariableRecord | None:
            record = await self.reader.variable(asked.output)
            return record if record is not None and record.state is not VariableState.PENDING else None

        return await _eventually(probe)

    async def value(self, asked: Asked) -> str:
        """Wait for the output's text."""
        record = await self.resolved(asked)
        assert record.error is None, record.error
        assert record.value is not None
        return record.value

    async def request(self, asked: Asked) -> RequestRecord:
        """Return the request as it stands."""
        record = await self.reader.request(asked.request)
        assert record is not None
        return record

    async def until(self, asked: Asked, state: str) -> RequestRecord:
        """Wait until a request is in a state."""

        async def probe() -> RequestRecord | None:
            record = await self.request(asked)
            return record if record.state == state else None

        return await _eventually(probe)

    async def streamed(self, asked: Asked) -> str:
        """Wait until something was streamed, and return the text so far."""

        async def probe() -> str:
            return "".join(piece.text for piece in await self.reader.pieces(asked.output))

        return await _eventually(probe)

    async def controls_read(self, engine_id: str) -> None:
        """Wait until an engine has taken the wake-up for its control messages."""
        keys = self.store.partition(self.number).keys

        async def probe() -> bool:
            return bool(await self.store.client.xlen(keys.engine_queue(engine_id)) == 0)

        await _eventually(probe)

    async def engine_state(self, engine_id: str, state: str) -> None:
        """Wait until an engine is in a state."""

        async def probe() -> bool:
            record = await self.reader.engine(engine_id)
            return record is not None and record.state == state

        await _eventually(probe)

    async def engine(self, test: Callable[[EngineRecord], bool] = lambda record: True) -> EngineRecord:
        """Wait for an engine that is ready and passes ``test``."""

        async def probe() -> EngineRecord | None:
            for record in (await engines(self.store)).values():
                if record is not None and record.state is EngineState.READY and test(record):
                    return record
            return None

        return await _eventually(probe)


@pytest.fixture
def gated() -> Iterator[Callable[..., GatedEngine]]:
    """Make engines that step only when they are permitted to; at the end they all are."""
    made: list[GatedEngine] = []

    def make(**options: Any) -> GatedEngine:
        made.append(GatedEngine(**options))
        return made[-1]

    yield make
    for engine in made:
        engine.permit()


@pytest.fixture
def eventually() -> Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]:
    """``await eventually(probe)`` returns what ``probe`` answers once that is true."""
    return _eventually


def _opener(url: str) -> OpenStore:
    with redis.Redis.from_url(url) as client:
        client.flushall()
    return lambda settings=None: connect(url, settings or StoreSettings())


@pytest.fixture(params=[pytest.param("redis", marks=pytest.mark.redis), "fake"])
def open_store(request: pytest.FixtureRequest, redis_servers: Callable[[str], str]) -> OpenStore:
    """Open another store on the same server, which is empty at the start: ``open_store(settings)``."""
    if request.param == "redis":
        return _opener(redis_servers("redis"))
    return FakeOpener()


class FakeOpener:
    """Opens stores on one fakeredis. They must share one event loop: its blocking reads are no matter for threads."""

    def __init__(self) -> None:
        self._server = fakeredis.FakeServer()

    async def __call__(self, settings: StoreSettings | None = None) -> Store:
        client = fakeredis.FakeAsyncRedis(server=self._server, decode_responses=True)
        return await connect("redis://fake", settings or StoreSettings(), client=client)


@pytest.fixture
def open_real(redis_url: str) -> OpenStore:
    """Open another store on the same empty real Redis: ``open_real(settings)``."""
    return _opener(redis_url)


@contextlib.asynccontextmanager
async def _working(
    open_store: OpenStore,
    make_engine: Callable[[], EnginePort] = lambda: SimEngine(clock=InstantClock()),
    *,
    store: StoreSettings | None = None,
    **settings: Any,
) -> AsyncIterator[EngineWorker]:
    worker = EngineWorker(
        lambda: open_store(store),
        make_engine,
        name="sim",
        kind="sim",
        settings=WorkerSettings(**settings),
        threaded_keeper=not isinstance(open_store, FakeOpener),
    )
    async with asyncio.TaskGroup() as group:
        task = group.create_task(worker.run())
        ready = group.create_task(worker.ready.wait())
        await asyncio.wait([task, ready], return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        try:
            yield worker
        finally:
            worker.stop(now=True)


@pytest.fixture
def working() -> Callable[..., contextlib.AbstractAsyncContextManager[EngineWorker]]:
    """``async with working(open_store, make_engine, **settings) as worker``: a worker that takes work."""
    return _working


@pytest.fixture
def make_desk() -> type[Desk]:
    """Make a desk on a store."""
    return Desk


@pytest.fixture
async def desk(open_store: OpenStore) -> AsyncIterator[Desk]:
    """A desk on the same server as ``open_store``."""
    async with await open_store() as store:
        yield Desk(store)


SHORT = StoreSettings(lease_s=0.6, heartbeat_ttl_s=0.3, backoff_base_s=0.01)
"""Leases and heartbeats that run out while a test can wait."""


@pytest.fixture
def short() -> StoreSettings:
    """Settings under which leases and heartbeats run out soon."""
    return SHORT


@pytest.fixture
async def real_desk(open_real: OpenStore) -> AsyncIterator[Desk]:
    """A desk on a real Redis, with ``short`` settings."""
    async with await open_real(SHORT) as store:
        yield Desk(store)
