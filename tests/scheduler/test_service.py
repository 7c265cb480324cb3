"""The scheduler against the store, with stub engines: on fakeredis and on real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import orjson
import pytest

from parrot_mq.keys import LEADER
from parrot_mq.messages import LATENCY, THROUGHPUT, RequestState, VariableState
from parrot_mq.scheduler import Scheduler
from parrot_mq.scheduler.dispatcher import Dispatcher
from parrot_mq.settings import SchedulerSettings
from parrot_mq.store import Reader, Store, encode_value
from parrot_mq.store.scheduler import IntakeEntry, SchedulerStore
from tests.scheduler.conftest import Start
from tests.scheduler.support import QUICK, App, StubEngine, until

Engines = Callable[..., Awaitable[StubEngine]]


async def test_a_chain_runs_to_its_end(shell_store: Store, app: App, engines: Engines, running: Start) -> None:
    engine = await engines("e0")
    scheduler = Scheduler(shell_store, QUICK)
    running(scheduler)
    end = app.value("start")
    for _ in range(30):
        end = app.call([end])
    await app.submit(chunk=7)
    record = await app.get(end)
    assert (record.state, record.value) == (VariableState.READY, "start")
    assert len(engine.claims) == 30
    assert scheduler.term is not None
    core = scheduler.term.core
    await until(lambda: not core.graph.requests)
    assert core.graph.variables == {}


async def test_maps_and_reduce_run_and_the_maps_go_together(
    shell_store: Store, app: App, engines: Engines, running: Start
) -> None:
    stubs = [await engines(f"e{n}", slots=32) for n in range(3)]
    maps = [app.call([app.value(str(n))]) for n in range(16)]
    reduce = app.call(maps)
    requests = await app.submit()
    await app.want(reduce, LATENCY)
    running(Scheduler(shell_store, QUICK))
    record = await app.get(reduce)
    assert record.value == "+".join(map(str, range(16)))
    homes = {stub.id for stub in stubs for claim in stub.claims if claim.request in requests[:16]}
    assert len(homes) == 1
    (home,) = homes
    plans = next(stub.plans for stub in stubs if stub.id == home)
    plan = orjson.loads(plans[requests[0]])
    assert plan["group"] == requests[16]
    assert plan["objective"] == "latency"


async def test_prefix_digests_come_with_assignments_once_the_template_is_here(
    shell_store: Store, app: App, engines: Engines, running: Start
) -> None:
    engine = await engines("e0")
    running(Scheduler(shell_store, QUICK))
    first = app.call([app.value("warm up")])
    await app.submit()
    await app.get(first)
    prefixes: list[list[str]] = []
    while not prefixes:  # until the template has been fetched
        calls = [app.call([app.value("one")]), app.call([app.value("two")])]
        requests = await app.submit()
        for call in calls:
            await app.get(call)
        plans = [orjson.loads(engine.plans[request]) for request in requests]
        prefixes = [plan["prefix"] for plan in plans if "prefix" in plan]
    assert len(prefixes) == 2
    assert prefixes[0][0] == prefixes[1][0]
    assert prefixes[0][1] != prefixes[1][1]


async def test_a_large_fan_out_and_fan_in(shell_store: Store, app: App, engines: Engines, running: Start) -> None:
    await engines("e0", slots=64)
    await engines("e1", slots=64)
    running(Scheduler(shell_store, QUICK))
    root = app.call([app.value("x")])
    leaves = [app.call([root]) for _ in range(300)]  # more than one script call serves
    end = app.call(leaves)
    await app.submit()
    await app.want(end, THROUGHPUT)
    record = await app.get(end)
    assert record.value == "+".join("x" * 300)


async def test_what_is_set_by_hand_starts_what_waits(
    shell_store: Store, app: App, engines: Engines, running: Start
) -> None:
    await engines("e0")
    running(Scheduler(shell_store, QUICK))
    by_hand = app.pending()
    end = app.call([by_hand])
    await app.submit()
    await app.producer.set_variable(by_hand, encode_value("hello", shell_store.settings, ""))
    assert (await app.get(end)).value == "hello"


async def test_a_batch_whose_end_never_comes_runs_after_a_while(
    shell_store: Store, app: App, engines: Engines, running: Start
) -> None:
    await engines("e0")
    running(Scheduler(shell_store, QUICK))
    end = app.call([app.value("x")])
    await app.submit(last=False)
    assert (await app.get(end)).value == "x"


async def test_cancelled_requests_are_forgotten(shell_store: Store, app: App, engines: Engines, running: Start) -> None:
    engine = await engines("e0", slots=1)
    engine.gate.clear()
    scheduler = Scheduler(shell_store, QUICK)
    running(scheduler)
    ends = [app.call([app.value("x")]) for _ in range(5)]
    requests = await app.submit()
    await engine.started.wait()
    assert await app.producer.cancel_requests(requests) == 5
    for end in ends:
        record = await app.get(end)
        assert record.error is not None
        assert record.error.kind == "Cancelled"
    assert scheduler.term is not None
    core = scheduler.term.core
    await until(lambda: not core.graph.requests)
    assert core.engines["e0"].num_outstanding == 0


async def test_expired_sessions_are_deleted(shell_store: Store, app: App, running: Start) -> None:
    variable = app.value("x")
    await app.submit()
    await shell_store.client.zadd("pmq:{p0}:sessions", {app.session: 1})
    running(Scheduler(shell_store, QUICK))
    reader = Reader(shell_store.partitions[0])

    async def gone() -> bool:
        return await reader.session(app.session) is None and await reader.variable(variable) is None

    await until(gone)


async def test_the_intake_is_trimmed_to_what_is_not_applied(
    shell_store: Store, app: App, engines: Engines, running: Start
) -> None:
    await engines("e0", slots=64)
    running(Scheduler(shell_store, QUICK))
    for _ in range(3):
        end = app.call([app.call([app.value("x")]) for _ in range(70)])
        await app.submit()
        await app.get(end)

    async def short() -> bool:
        return await shell_store.client.xlen("pmq:{p0}:intake") < 200  # whole nodes of 100 entries are dropped

    await until(short)


async def test_an_unreadable_hint_is_passed_over(
    shell_store: Store, app: App, engines: Engines, running: Start, caplog: pytest.LogCaptureFixture
) -> None:
    await engines("e0")
    running(Scheduler(shell_store, QUICK))
    before = app.call([app.value("x")])
    await app.submit()
    await app.get(before)  # the intake is being read
    await shell_store.client.xadd("pmq:{p0}:intake", {"kind": "submitted", "batch": "b"})
    await shell_store.client.xadd("pmq:{p0}:intake", {"kind": "resolved", "variables": "x::y"})
    end = app.call([app.value("x")])
    await app.submit()
    assert (await app.get(end)).value == "x"
    assert [r.getMessage().split("kind ")[1].split()[0] for r in caplog.records if "cannot be read" in r.message] == [
        "'submitted'",
        "'resolved'",
    ]


async def test_large_submits_are_dispatched_in_between(
    shell_store: Store, app: App, engines: Engines, running: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("parrot_mq.scheduler.intake.SLICE_S", 0.0)
    submitted = asyncio.Event()
    read, dispatch = SchedulerStore.read_intake, Dispatcher.dispatch
    sizes: list[int] = []

    async def read_late(self: SchedulerStore, after: str, *, block_ms: int | None, count: int) -> list[IntakeEntry]:
        await submitted.wait()
        return await read(self, after, block_ms=block_ms, count=count)

    async def note(self: Dispatcher) -> None:
        sizes.append(len(self._core.graph.requests))
        await dispatch(self)

    monkeypatch.setattr(SchedulerStore, "read_intake", read_late)
    monkeypatch.setattr(Dispatcher, "dispatch", note)
    await engines("e0")
    scheduler = Scheduler(shell_store, QUICK)
    running(scheduler)
    await scheduler.leading.wait()
    await until(lambda: sizes)  # the take-over is done
    ends = [app.call([app.value("x")]) for _ in range(20)]
    for _ in range(4):
        app._requests, rest = app._requests[:5], app._requests[5:]
        await app.submit()
        app._requests = rest
    submitted.set()
    for end in ends:
        assert (await app.get(end)).value == "x"
    assert next(size for size in sizes if size) == 5, "all four came with one read"


async def test_stop_drains(shell_store: Store, app: App, engines: Engines, running: Start) -> None:
    engine = await engines("e0", slots=2)
    engine.gate.clear()
    scheduler = Scheduler(shell_store, SchedulerSettings(engine_poll_s=0.05, reap_interval_s=0.05))
    task = running(scheduler)
    for n in range(6):
        app.call([app.value(f"x{n}")])
    requests = await app.submit()
    await engine.started.wait()
    scheduler.stop()
    await task
    assert not scheduler.leading.is_set()
    assert await shell_store.client.get(LEADER) is None
    dispatched = len(await shell_store.client.xrange("pmq:{p0}:eng:e0:q")) + len(engine.claims)
    engine.gate.set()

    async def all_done() -> bool:
        return await shell_store.client.zcard("pmq:{p0}:live") <= 6 - dispatched

    await until(all_done)
    records = await Reader(shell_store.partitions[0]).requests(requests)
    states = [record.state for record in records if record is not None]
    assert states.count(RequestState.DONE) == dispatched < 6
    assert states.count(RequestState.READY) == 6 - dispatched
