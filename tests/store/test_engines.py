"""Heartbeats, dispatch, and an engine's two streams."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from parrot_mq.errors import Fenced, Overloaded
from parrot_mq.keys import ENGINES
from parrot_mq.messages import CostModel, EngineRecord, EngineState
from parrot_mq.store import Store
from parrot_mq.store.engine import deregister, register
from parrot_mq.store.reader import engines
from parrot_mq.store.records import DispatchItem
from parrot_mq.store.scheduler import forget_engine
from tests.store.lab import FAILURE, Lab, on_real_servers


async def test_the_first_heartbeat_makes_the_streams(lab: Lab) -> None:
    assert not await lab.engine.is_registered("e1")
    await lab.heartbeat("e1", EngineState.STARTING)
    assert await lab.engine.is_registered("e1")
    assert 0 < await lab.redis.pttl(lab.keys.engine("e1")) <= 3000
    await lab.heartbeat("e1", EngineState.STARTING)
    await lab.heartbeat("e1", EngineState.READY)
    assert len(await lab.hints("engine")) == 2  # registered, and became ready


async def test_the_record_arrives_as_it_was_sent(lab: Lab) -> None:
    record = EngineRecord(
        "e1", "torch", "m", EngineState.READY, 64, 4096, 16, 900, 800, 3, 2,
        CostModel(0.1, 2.0, 0.25, 0.125), ("aa", "bb"), 12.5, "host", 77, 1234,
    )  # fmt: skip
    await lab.engine.heartbeat(record)
    assert await lab.reader.engine("e1") == record
    assert await lab.reader.engine("e2") is None


async def test_engines_are_listed_until_forgotten(any_store: Store) -> None:
    record = EngineRecord("e1", "sim", "m", EngineState.READY)
    await register(any_store, record)
    assert await engines(any_store) == {"e1": record}
    await deregister(any_store, "e1")
    assert await engines(any_store) == {"e1": None}
    assert await any_store.client.zscore(ENGINES, "e1") > 1e12
    await forget_engine(any_store, "e1")
    assert await engines(any_store) == {}


async def test_only_what_is_ready_is_dispatched_and_once(lab: Lab) -> None:
    session = await lab.session()
    (first, second), _ = await lab.chain(session, 2)
    await lab.heartbeat()
    fences = await lab.scheduler.dispatch(
        [DispatchItem(first, "e1", '{"rank":1}'), DispatchItem(second, "e1"), DispatchItem(lab.id("r"), "e1")],
        ["t1", "t2", "t3"],
    )
    assert fences == ["1.t1", "", ""]
    record = await lab.reader.request(first)
    assert record is not None
    assert (record.state, record.engine, record.fence, record.rev) == ("queued", "e1", "1.t1", 2)
    (assignment,) = await lab.receive()
    assert (assignment.request, assignment.fence, assignment.plan_json) == (first, "1.t1", '{"rank":1}')
    assert await lab.dispatch(first) == ""


async def test_the_same_dispatch_again_gives_the_same_fence(lab: Lab) -> None:
    request, _ = await lab.one(await lab.session())
    await lab.heartbeat()
    items = [DispatchItem(request, "e1")]
    assert await lab.scheduler.dispatch(items, ["t"]) == ["1.t"]
    assert await lab.scheduler.dispatch(items, ["t"]) == ["1.t"]
    assert len(await lab.receive()) == 1


async def test_every_dispatch_has_a_new_fence(lab: Lab) -> None:
    request, _ = await lab.one(await lab.session())
    fences = []
    for _ in range(3):
        await lab.heartbeat()
        fences.append(await lab.dispatch(request))
        await lab.engine.release("e1", [(request, fences[-1])])
    assert [fence.split(".")[0] for fence in fences] == ["1", "2", "3"]
    assert len(set(fences)) == 3


@pytest.mark.parametrize("how", ["unknown", "expired", "left", "no streams"])
async def test_a_dead_engine_gets_nothing(lab: Lab, how: str) -> None:
    request, _ = await lab.one(await lab.session())
    if how != "unknown":
        await lab.heartbeat()
    if how == "expired":
        await lab.kill_engine()
    elif how == "left":
        await lab.engine.leave("e1")
    elif how == "no streams":
        await lab.redis.delete(lab.keys.engine_queue("e1"))
    assert await lab.dispatch(request) == ""
    assert await lab.state(request) == "ready"


async def test_a_former_leader_is_refused(lab: Lab) -> None:
    request, _ = await lab.one(await lab.session())
    await lab.heartbeat()
    assert await lab.scheduler.raise_epoch(7) == 7
    assert await lab.scheduler.raise_epoch(3) == 7
    before = await lab.snapshot()
    old = lab.scheduler
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: lab.dispatch(request),
        lambda: old.reject(request, FAILURE),
        lambda: old.reap_engine("e1", []),
        old.reap,
        old.propagate,
        old.expired_sessions,
    ]
    for call in calls:
        with pytest.raises(Fenced, match="epoch 1 is over"):
            await call()
    assert await lab.snapshot() == before
    lab.scheduler.epoch = 7
    assert await lab.dispatch(request)


@on_real_servers
async def test_receive_waits_for_an_assignment(lab: Lab) -> None:
    request, _ = await lab.one(await lab.session())
    await lab.heartbeat()
    waiting = asyncio.create_task(lab.engine.receive("e1", "0", block_ms=5000))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    fence = await lab.dispatch(request)
    assignments, controls = await waiting
    assert [(a.request, a.fence) for a in assignments] == [(request, fence)]
    assert controls == []


@on_real_servers
async def test_a_control_message_wakes_the_engine(lab: Lab) -> None:
    await lab.heartbeat()
    waiting = asyncio.create_task(lab.engine.receive("e1", "0", block_ms=5000))
    await asyncio.sleep(0.05)
    await lab.scheduler.control("e1", "objective", "r", "f", "text")
    assignments, (control,) = await waiting
    assert assignments == []
    assert (control.kind, control.request, control.fence, control.text) == ("objective", "r", "f", "text")
    assert await lab.redis.xlen(lab.keys.engine_queue("e1")) == 0
    await lab.scheduler.control("e1", "drain", "")
    _, later = await lab.engine.receive("e1", control.entry_id, block_ms=1)
    assert [c.kind for c in later] == ["drain"]


async def test_a_control_message_makes_no_streams(lab: Lab) -> None:
    await lab.scheduler.control("gone", "drain", "")
    assert await lab.snapshot() == {}


async def test_what_was_delivered_to_a_lost_connection_is_delivered_again(lab: Lab) -> None:
    session = await lab.session()
    requests = [(await lab.one(session))[0] for _ in range(3)]
    await lab.heartbeat()
    for request in requests:
        await lab.dispatch(request)
    first = await lab.receive()
    assert await lab.receive() == []
    await lab.scheduler.control("e1", "drain", "")
    await lab.engine.receive("e1", "0", block_ms=1)  # this answer is lost as well
    again, controls = await lab.engine.receive_again("e1", "0")
    assert again == first
    assert [c.kind for c in controls] == ["drain"]
    await lab.engine.start("e1", first[:1])
    await lab.engine.release("e1", [(first[1].request, first[1].fence)])
    assert (await lab.engine.receive_again("e1", "0"))[0] == first[2:]


@on_real_servers
async def test_an_engine_without_streams_was_taken_for_dead(lab: Lab) -> None:
    with pytest.raises(Fenced, match="e1"):
        await lab.engine.receive("e1", "0", block_ms=1)
    with pytest.raises(Fenced, match="e1"):
        await lab.engine.receive_again("e1", "0")


@pytest.mark.redis
async def test_registering_says_overloaded_only_for_a_new_engine(real: Lab) -> None:
    record = EngineRecord("e1", "sim", "m", EngineState.READY)
    await register(real.store, record)
    await real.redis.config_set("maxmemory", 1)
    try:
        await register(real.store, record)
        with pytest.raises(Overloaded):
            await register(real.store, EngineRecord("e2", "sim", "m", EngineState.READY))
    finally:
        await real.redis.config_set("maxmemory", 0)
