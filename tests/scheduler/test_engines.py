"""Engines that come, die, leave, load and are told things; models that nobody serves."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable

import orjson

from parrot_mq.errors import ErrorRecord
from parrot_mq.keys import ENGINES
from parrot_mq.messages import THROUGHPUT, EngineState, RequestState
from parrot_mq.scheduler import Scheduler
from parrot_mq.store import EngineStore, Reader, Store
from tests.scheduler.conftest import Start
from tests.scheduler.support import QUICK, App, StubEngine, until

Engines = Callable[..., Awaitable[StubEngine]]


async def test_a_dead_engines_requests_go_to_another(
    shell_store: Store, app: App, engines: Engines, running: Start
) -> None:
    dead = await engines("dead", slots=4)
    dead.gate.clear()  # it takes requests and never answers
    running(Scheduler(shell_store, QUICK))
    ends = [app.call([app.value(str(n))]) for n in range(12)]
    requests = await app.submit()
    await dead.started.wait()
    await dead.kill()
    running_before = [r for r in await Reader(shell_store.partitions[0]).requests(requests) if r is not None]
    assert {r.engine for r in running_before if r.state is RequestState.RUNNING} == {"dead"}
    alive = await engines("alive", slots=4)
    assert [(await app.get(end)).value for end in ends] == [str(n) for n in range(12)]
    assert len(alive.claims) == 12
    client = shell_store.client
    keys = shell_store.partitions[0].keys

    async def buried() -> bool:
        return not await client.exists(keys.engine_queue("dead")) and await client.zscore(ENGINES, "dead") is None

    await until(buried)


async def test_an_engine_that_leaves_gives_its_queue_to_others(
    shell_store: Store, app: App, engines: Engines, running: Start
) -> None:
    first = await engines("first")
    first.gate.clear()
    scheduler = Scheduler(shell_store, QUICK)
    running(scheduler)
    end = app.call([app.value("x")])
    await app.submit()
    await first.started.wait()
    await first.stop()
    await engines("second")
    assert (await app.get(end)).value == "x"
    assert scheduler.term is not None
    term = scheduler.term
    await until(lambda: list(term.core.engines) == ["second"])


async def test_a_model_that_nobody_serves_is_an_error_then_at_once(
    shell_store: Store, app: App, engines: Engines, running: Start
) -> None:
    await engines("e0", model="known")
    scheduler = Scheduler(shell_store, QUICK)
    running(scheduler)
    end = app.call([app.call([app.value("x")], model="nope")])
    fine = app.call([app.value("y")], model="known")
    await app.submit()
    record = await app.get(end)
    assert record.error is not None
    assert record.error.kind == "UnknownModel"
    assert "'nope'" in record.error.message
    assert "known" in record.error.message
    assert (await app.get(fine)).value == "y"
    assert scheduler.term is not None
    scheduler.term.core.models._grace_s = 1e9  # the grace must not be waited for again
    again = app.call([app.value("x")], model="nope")
    await app.submit()
    record = await app.get(again)
    assert record.error is not None
    assert record.error.kind == "UnknownModel"


async def test_a_model_that_is_loading_is_waited_for(
    shell_store: Store, app: App, engines: Engines, running: Start
) -> None:
    slow = await engines("slow", model="big")
    slow.record = dataclasses.replace(slow.record, state=EngineState.STARTING)
    await EngineStore(shell_store.partitions[0]).heartbeat(slow.record)
    scheduler = Scheduler(shell_store, QUICK)
    running(scheduler)
    end = app.call([app.value("x")], model="big")
    await app.submit()
    await asyncio.sleep(2 * QUICK.model_grace_s)
    assert scheduler.term is not None
    assert len(scheduler.term.core.ready) == 1
    slow.record = dataclasses.replace(slow.record, state=EngineState.READY)
    assert (await app.get(end)).value == "x"


async def test_requests_wait_for_the_first_engine(
    shell_store: Store, app: App, engines: Engines, running: Start
) -> None:
    scheduler = Scheduler(shell_store, QUICK)
    running(scheduler)
    end = app.call([app.value("x")])
    await app.submit()
    await until(lambda: scheduler.term is not None and len(scheduler.term.core.ready) == 1)
    await engines("e0")
    assert (await app.get(end)).value == "x"


async def test_a_failed_attempt_is_tried_again_after_its_back_off(
    shell_store: Store, app: App, engines: Engines, running: Start
) -> None:
    engine = await engines("e0")
    engine.gate.clear()
    running(Scheduler(shell_store, QUICK))
    end = app.call([app.value("x")])
    await app.submit()
    await engine.started.wait()
    claim = engine.claims[0]
    failure = ErrorRecord("EngineFailed", "out of luck")
    await EngineStore(shell_store.partitions[0]).fail(claim.request, claim.fence, failure, retry=True)
    engine.gate.set()
    assert (await app.get(end)).value == "x"
    assert [c.attempt for c in engine.claims] == [1, 2]


async def test_an_engine_is_told_of_a_new_objective(
    shell_store: Store, app: App, engines: Engines, running: Start
) -> None:
    engine = await engines("e0")
    engine.gate.clear()
    running(Scheduler(shell_store, QUICK))
    end = app.call([app.value("x")])
    (request,) = await app.submit()
    await engine.started.wait()
    await app.want(end, THROUGHPUT)
    entries: list[tuple[str, dict[str, str]]] = []
    while not entries:
        entries = await shell_store.client.xrange("pmq:{p0}:eng:e0:c")
        await asyncio.sleep(0.01)
    assert (entries[0][1]["kind"], entries[0][1]["request"]) == ("objective", request)
    assert orjson.loads(entries[0][1]["text"]) == {"kind": "throughput"}
    engine.gate.set()
    await app.get(end)
