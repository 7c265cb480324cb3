"""When lanes are granted, renewed and taken back; and a service whose requests go by them."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from parrot_mq.messages import CostModel, EngineRecord, EngineState, Objective, ObjectiveKind, RequestState
from parrot_mq.scheduler import Scheduler
from parrot_mq.scheduler.core import Core
from parrot_mq.scheduler.lanes import Lanes
from parrot_mq.scheduler.policy import EngineLoad
from parrot_mq.settings import SchedulerSettings
from parrot_mq.store import Store
from parrot_mq.store.records import Lane
from tests.scheduler.conftest import Start
from tests.scheduler.support import QUICK, App, StubEngine, until
from tests.scheduler.test_fold import apply, done, entry, submitted


def load(name: str, model: str = "m", **fields: Any) -> EngineLoad:
    values: dict[str, Any] = {"max_num_seqs": 16, "cost": CostModel(1.0, 0.0, 0.0), **fields}
    made = EngineLoad(name)
    made.update(EngineRecord(name, "sim", model, values.pop("state", EngineState.READY), **values))
    return made


def test_the_only_engine_of_a_model_gets_a_lane() -> None:
    assert Lanes(4).due([load("e1")], idle=True) == {"m": Lane("e1", 4), "": Lane("e1", 4)}


def test_half_of_the_free_slots_is_the_most() -> None:
    assert Lanes(8).due([load("e1", max_num_seqs=5)], idle=True) == {"m": Lane("e1", 3), "": Lane("e1", 3)}


def test_where_there_is_a_choice_there_is_no_lane() -> None:
    two = [load("e1"), load("e2")]
    assert Lanes(4).due(two, idle=True) is None
    # Each model has one engine; requests that take any model have two.
    assert Lanes(4).due([load("e1", "a"), load("e2", "b")], idle=True) == {"a": Lane("e1", 4), "b": Lane("e2", 4)}


@pytest.mark.parametrize("why", ["starting", "draining", "suspended", "no heartbeat", "switched off"])
def test_an_engine_that_takes_nothing_gets_no_lane(why: str) -> None:
    engine = load("e1")
    if why in ("starting", "draining"):
        engine = load("e1", state=EngineState(why))
    elif why == "suspended":
        engine.suspended = True
    elif why == "no heartbeat":
        engine.update(None)
    assert Lanes(0 if why == "switched off" else 4).due([engine], idle=True) is None


def test_a_lane_is_renewed_when_half_of_it_is_used_and_taken_back_when_something_waits() -> None:
    lanes, engines = Lanes(4), [load("e1")]
    first = lanes.due(engines, idle=True)
    assert first is not None
    lanes.granted(first)
    assert lanes.due(engines, idle=True) is None
    lanes.used("m")
    assert lanes.due(engines, idle=True) is None
    lanes.used("m")
    assert lanes.due(engines, idle=True) == first
    assert lanes.due(engines, idle=False) == {}
    lanes.granted({})
    assert lanes.due(engines, idle=False) is None


def test_a_lane_moves_with_its_engine() -> None:
    lanes = Lanes(4)
    lanes.granted({"m": Lane("e1", 4), "": Lane("e1", 4)})
    assert lanes.due([load("e2")], idle=True) == {"m": Lane("e2", 4), "": Lane("e2", 4)}
    assert lanes.due([], idle=True) == {}


def with_lanes(**fields: Any) -> Core:
    core = Core(SchedulerSettings(lane_credits=4))
    values: dict[str, Any] = {"max_num_seqs": 16, "cost": CostModel(1.0, 0.0, 0.0), **fields}
    core.update_engines({"e0": EngineRecord("e0", "sim", "m", EngineState.READY, **values)})
    lanes = core.due_lanes()
    assert lanes is not None
    core.lanes.granted(lanes)
    return core


def test_what_went_by_a_lane_is_charged_to_its_engine() -> None:
    core = with_lanes()
    apply(core, submitted(("a", (), "ready"), ("b", ("a",), "waiting")))
    assert core.due_lanes() == {}, "something waits until the scheduler hears where it went"
    apply(core, entry("dispatched", engine="e0", requests="0-r-a:2:1.x"))
    node = core.graph.requests["0-r-a"]
    assert (node.state, node.engine, node.fence, node.rev) == (RequestState.QUEUED, "e0", "1.x", 2)
    assert (len(core.ready), core.engines["e0"].outstanding) == (0, ["0-r-a"])
    assert not core.decide(0.0).placements
    apply(core, done("a", ready="0-r-b:2"), entry("dispatched", engine="e0", requests="0-r-b:3:1.y"))
    assert core.engines["e0"].outstanding == ["0-r-b"]
    assert core.due_lanes() is not None, "half of the lane is used"


def test_old_news_of_a_lane_is_ignored() -> None:
    core = with_lanes()
    apply(core, submitted(("a", (), "ready")), entry("ready", ready="0-r-a:5", dead=""))
    apply(core, entry("dispatched", engine="e0", requests="0-r-a:2:1.x 0-r-unknown:2:1.z"))
    assert core.graph.requests["0-r-a"].state is RequestState.READY
    assert len(core.ready) == 1


def test_an_engine_is_told_what_the_lane_did_not_know() -> None:
    core = with_lanes()
    apply(core, submitted(("a", (), "ready")))
    node = core.graph.requests["0-r-a"]
    node.objective = Objective(ObjectiveKind.THROUGHPUT)
    apply(core, entry("dispatched", engine="e0", requests="0-r-a:2:1.x"))
    assert list(core.upgraded) == [node]


@pytest.mark.parametrize("held", [False, True], ids=["queued", "held"])
def test_a_tenant_is_charged_once_for_equal_requests_that_went_by_a_lane(held: bool) -> None:
    """Six equal ones of one tenant are less work than two different ones of another: it is served first."""
    core = with_lanes(max_num_seqs=3, cost=CostModel(1.0, 1000.0, 0.0))

    def by_lane(tenant: str, *requests: tuple[str, tuple[str, ...], str]) -> None:
        apply(core, submitted(*requests, tenant=tenant, last="" if held else "1"))
        items = " ".join(f"0-r-{name}:2:1.x" for name, *_ in requests)
        apply(core, entry("dispatched", engine="e0", requests=items))
        apply(core, *(done(name) for name, *_ in requests))
        assert not core.graph.requests
        core.holds.end("b")

    by_lane("equal", *((f"a{n}", (), "ready") for n in range(6)))
    by_lane("different", ("b0", ("one",), "ready"), ("b1", ("two",), "ready"))
    for tenant in ("different", "equal"):
        for n in range(3):
            apply(core, submitted((f"{tenant}{n}", (f"{tenant}{n} text",), "ready"), tenant=tenant))
    first = [p.request.tenant for p in core.decide(0.0).placements]
    assert first[:2] == ["equal", "different"]
    assert len(first) < 6


async def test_a_chain_of_a_served_application_goes_by_lanes(
    shell_store: Store, app: App, engines: Callable[..., Awaitable[StubEngine]], running: Start
) -> None:
    engine = await engines("e0", slots=16)
    scheduler = Scheduler(shell_store, dataclasses.replace(QUICK, lane_credits=4))
    running(scheduler)
    await until(lambda: scheduler.term is not None and scheduler.term.core.engines)
    await until(lambda: scheduler.term is not None and scheduler.term.core.due_lanes() is None)
    end = app.value("start")
    for _ in range(30):
        end = app.call([end])
    await app.submit()
    assert (await app.get(end)).value == "start"
    assert len(engine.claims) == len({claim.request for claim in engine.claims}) == 30
    term = scheduler.term
    assert term is not None
    await until(lambda: not term.core.graph.requests)
    assert term.dispatcher.num_dispatched < 30, "all others went by lanes"
    assert not term.core.engines["e0"].outstanding


async def test_lanes_are_taken_back_when_a_second_engine_comes(
    shell_store: Store, engines: Callable[..., Awaitable[StubEngine]], running: Start
) -> None:
    await engines("e0", slots=16)
    scheduler = Scheduler(shell_store, dataclasses.replace(QUICK, lane_credits=4))
    running(scheduler)
    lanes = f"{shell_store.partition(0).keys.prefix}lanes"

    async def granted() -> bool:
        return bool(await shell_store.client.exists(lanes))

    await until_async(granted)
    await engines("e1", slots=16)
    await until_async(lambda: is_not(granted))


async def is_not(probe: Callable[[], Awaitable[bool]]) -> bool:
    return not await probe()


async def until_async(probe: Callable[[], Awaitable[bool]]) -> None:
    for _ in range(2000):
        if await probe():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came to that")
