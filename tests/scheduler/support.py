"""What scheduler tests share: an application, an engine that echoes, and pieces of graphs without a store."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from parrot_mq.errors import Fenced
from parrot_mq.keys import make_id
from parrot_mq.messages import (
    Binding,
    CostModel,
    EngineRecord,
    EngineState,
    FunctionRecord,
    Objective,
    RequestSpec,
    RequestState,
    SamplingParams,
    Segment,
    SegmentKind,
    VariableState,
)
from parrot_mq.scheduler.core import Core
from parrot_mq.scheduler.nodes import Arrival, RequestNode
from parrot_mq.settings import SchedulerSettings
from parrot_mq.store import EngineStore, ProducerStore, Reader, Store, encode_value
from parrot_mq.store.engine import deregister, register
from parrot_mq.store.records import Assignment, Claim, NewVariable, Usage, VariableRecord

QUICK = SchedulerSettings(
    leader_ttl_s=0.6,
    engine_poll_s=0.05,
    reap_interval_s=0.05,
    model_grace_s=0.3,
    lane_credits=0,
    single_flight=False,
)
"""Settings under which tests need not wait, each dispatch is the scheduler's, and each request is placed by itself."""
WAIT_S = 60.0
"""For what a test waits for: the time-out of the test itself would fail whatever task happens to run."""


def function(num_inputs: int, name: str = "join") -> FunctionRecord:
    """Make the template ``Join {{i0}} {{i1}} ... {{out}}``."""
    segments = [Segment(SegmentKind.CONSTANT, "Join the following texts, one after the other, and say nothing else: ")]
    segments += [Segment(SegmentKind.INPUT, f"i{n}") for n in range(num_inputs)]
    return FunctionRecord(name, (*segments, Segment(SegmentKind.OUTPUT, "out")))


class App:
    """An application: builds calls, submits them, reads results."""

    def __init__(self, store: Store, partition: int = 0, tenant: str = "acme") -> None:
        self.store = store
        self.number = partition
        self.tenant = tenant
        self.producer = ProducerStore(store.partition(partition))
        self.session = self.id("s")
        self._functions: dict[str, FunctionRecord] = {}
        self._variables: list[NewVariable] = []
        self._requests: list[tuple[RequestSpec, tuple[str, ...]]] = []

    def id(self, kind: str) -> str:
        return make_id(self.number, kind, self.store.ids.token())

    async def open(self) -> App:
        await self.producer.open_session(self.session, self.tenant)
        return self

    def value(self, text: str) -> str:
        """Make a variable that has a value."""
        variable = self.id("v")
        self._variables.append(NewVariable(variable, "", encode_value(text, self.store.settings, "")))
        return variable

    def pending(self) -> str:
        """Make a variable that somebody will set."""
        variable = self.id("v")
        self._variables.append(NewVariable(variable, ""))
        return variable

    def call(
        self, inputs: Iterable[str], *, model: str = "", max_tokens: int = 8, priority: int = 0, output: str = ""
    ) -> str:
        """Call ``join`` on variables; returns its output."""
        inputs = tuple(inputs)
        template = function(len(inputs))
        self._functions[template.digest] = template
        output = output or self.pending()
        bindings = {f"i{n}": Binding(vid) for n, vid in enumerate(inputs)}
        spec = RequestSpec(
            self.id("r"), self.id("c"), template.digest, "join", len(inputs) + 1, bindings, output, "out",
            model, SamplingParams(max_tokens=max_tokens), priority=priority,
        )  # fmt: skip
        self._requests.append((spec, inputs))
        return output

    async def submit(self, *, last: bool = True, chunk: int = 200, batch: str = "") -> list[str]:
        """Send what was built; returns the ids of the requests."""
        batch = batch or self.store.ids.token()
        requests, variables = self._requests, self._variables
        self._requests, self._variables = [], []
        by_output = {v.id: v for v in variables}
        sent: set[str] = set()
        for start in range(0, max(1, len(requests)), chunk):
            part = requests[start : start + chunk]
            names = dict.fromkeys(i for spec, inputs in part for i in (*inputs, spec.output))
            new = [by_output[n] for n in names if n in by_output and n not in sent]
            if start + chunk >= len(requests):
                new += [v for v in variables if v.id not in sent and v not in new]
            sent.update(v.id for v in new)
            await self.producer.submit(
                self.session, batch, self._functions.values(), new, part, last=last and start + chunk >= len(requests)
            )
        return [spec.id for spec, _ in requests]

    async def want(self, variable: str, objective: Objective) -> None:
        assert await self.producer.want(variable, objective)

    async def get(self, variable: str) -> VariableRecord:
        """Wait for a variable."""
        reader = Reader(self.store.partition(self.number))
        async with asyncio.timeout(WAIT_S):
            while True:
                record = await reader.variable(variable)
                assert record is not None, f"{variable} does not exist"
                if record.state is not VariableState.PENDING:
                    return record
                await asyncio.sleep(0.01)


class StubEngine:
    """An engine that answers each request with its inputs joined by "+", once its ``gate`` is open."""

    def __init__(self, store: Store, name: str, *, model: str = "stub", slots: int = 8, **fields: Any) -> None:
        self.store = store
        fields.setdefault("cost", CostModel(0.01, 0.5, 0.05))
        self.record = EngineRecord(name, "sim", model, EngineState.READY, max_num_seqs=slots, **fields)
        self.claims: list[Claim] = []
        self.plans: dict[str, str] = {}
        self.hints: list[tuple[str, str]] = []
        """Kind and text of the hints that came."""
        self.started = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()
        self._ended = False
        """redis-py may swallow a cancellation: the loops look at this as well."""
        self._task: asyncio.Task[None] | None = None

    @property
    def id(self) -> str:
        return self.record.id

    async def start(self) -> StubEngine:
        await register(self.store, self.record)
        self._task = asyncio.create_task(self._run())
        return self

    async def stop(self) -> None:
        """Leave in an orderly way."""
        await self.kill()
        await deregister(self.store, self.id)

    async def kill(self) -> None:
        """Vanish, as after kill -9."""
        self._ended = True
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._beat())
            for partition in self.store.partitions:
                tasks.create_task(self._serve(EngineStore(partition)))

    async def _beat(self) -> None:
        while not self._ended:
            for partition in self.store.partitions:
                await EngineStore(partition).heartbeat(self.record)
            await asyncio.sleep(0.1)

    async def _serve(self, store: EngineStore) -> None:
        after = "0"
        async with asyncio.TaskGroup() as answers:
            while not self._ended:
                assignments, controls = await store.receive(self.id, after, block_ms=50)
                self.hints += [(c.kind, c.text) for c in controls if c.kind in ("prefill", "retain", "release")]
                await asyncio.sleep(0.002)  # fakeredis' group read does not block, nor yield with redis-py 8
                after = controls[-1].entry_id if controls else after
                if assignments:
                    claims = await self._claim(store, assignments)
                    if self.gate.is_set():
                        await self._answer(store, claims)
                    else:
                        answers.create_task(self._answer(store, claims))

    async def _claim(self, store: EngineStore, assignments: list[Assignment]) -> list[Claim]:
        self.plans |= {a.request: a.plan_json for a in assignments}
        claims = [claim for claim in await store.start(self.id, assignments) if claim is not None]
        self.claims += claims
        self.started.set()
        return claims

    async def _answer(self, store: EngineStore, claims: list[Claim]) -> None:
        await self.gate.wait()
        for claim in claims:
            output = RequestSpec.from_json(claim.spec_json).output
            value = encode_value("+".join(i.text or "" for i in claim.inputs), self.store.settings, "")
            with contextlib.suppress(Fenced):
                await store.complete(claim.request, claim.fence, output, value, Usage(num_output_tokens=2))


async def until(condition: Callable[[], Any]) -> None:
    """Wait until ``condition()`` (or what it returns, awaited) is true."""
    async with asyncio.timeout(WAIT_S):
        while not (await found if inspect.isawaitable(found := condition()) else found):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


# Graphs without a store -----------------------------------------------------------------------------------------------


def spec_of(name: str, inputs: Iterable[str] = (), **fields: Any) -> dict[str, Any]:
    """Make the JSON object of request ``0-r-<name>`` that reads ``0-v-<input>`` ... and makes ``0-v-<name>``."""
    inputs = list(inputs)
    bindings = {f"i{n}": {"variable": f"0-v-{i}"} for n, i in enumerate(inputs)}
    return {
        "id": f"0-r-{name}", "call": "0-c-1", "function": "f", "function_name": "join", "prompt_end": len(inputs) + 1,
        "bindings": bindings, "output": f"0-v-{name}", "output_name": "out", **fields,
    }  # fmt: skip


def add(
    core: Core, name: str, inputs: Iterable[str] = (), *, tenant: str = "acme", at_ms: int = 1000, **fields: Any
) -> RequestNode:
    """Put a request into a core; it is ready if none of its inputs has a producer there."""
    inputs = list(inputs)
    producers = [core.graph.variables.get(f"0-v-{i}") for i in inputs]
    waiting = any(v is not None and v.producer is not None for v in producers)
    state = RequestState.WAITING if waiting else RequestState.READY
    node = core.add(spec_of(name, inputs, **fields), Arrival(tenant, "batch", at_ms), 1, state, 0.0)
    assert node is not None
    core.enqueue(node)
    return node


def engine(name: str, *, model: str = "stub", slots: int = 8, **fields: Any) -> EngineRecord:
    """Make the heartbeat of an engine that is ready."""
    fields.setdefault("cost", CostModel(0.1, 5.0, 0.5))
    return EngineRecord(name, "sim", model, EngineState.READY, max_num_seqs=slots, **fields)


def core_with(*engines: EngineRecord, settings: SchedulerSettings = QUICK) -> Core:
    """Make a core that knows ``engines``."""
    core = Core(settings)
    core.update_engines({record.id: record for record in engines})
    return core


def placed(core: Core, now_ms: float = 0.0) -> dict[str, str]:
    """Decide once; returns the engine of each request that was placed, by the request's short name, in order."""
    return {p.request.id.removeprefix("0-r-"): p.engine.id for p in core.decide(now_ms).placements}


def share(core: Core, node: RequestNode, *prefix: tuple[str, int]) -> RequestNode:
    """Give a queued request a prefix, as its template would."""
    core.ready.discard(node)
    node.prefix, node.prompt_tokens = prefix, prefix[-1][1] + 8
    core.ready.put(node)
    return node
