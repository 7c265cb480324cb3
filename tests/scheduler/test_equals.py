"""Equal requests in the scheduler: one is placed and charged, the others go with it."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parrot_mq.messages import LATENCY, THROUGHPUT, RequestState
from parrot_mq.scheduler import Scheduler
from parrot_mq.scheduler.core import Core
from parrot_mq.scheduler.nodes import RequestNode
from parrot_mq.scheduler.policy import Reason, flight_digest, flights, plan_json
from parrot_mq.scheduler.standing import standing
from parrot_mq.store.records import Lane
from tests.scheduler.conftest import Start
from tests.scheduler.support import QUICK, WAIT_S, App, StubEngine, add, core_with, engine, placed, share, until

ON = dataclasses.replace(QUICK, single_flight=True)


def core(*names: str, slots: int = 2, **more: Any) -> Core:
    return core_with(*(engine(name, slots=slots) for name in names), settings=dataclasses.replace(ON, **more))


def charged(core: Core) -> dict[str, list[str]]:
    return {load.id: [i.removeprefix("0-r-") for i in load.outstanding] for load in core.engines.values()}


def node_of(core: Core, name: str) -> RequestNode:
    return core.graph.requests[f"0-r-{name}"]


def test_equal_requests_go_to_one_engine_full_or_not_and_are_charged_once() -> None:
    it = core("e1", "e2")
    for n in range(6):
        add(it, f"a{n}")
    plan = it.decide(0.0)
    assert len(plan.placements) == 6
    assert len({p.engine.id for p in plan.placements}) == 1
    assert [p.reason for p in plan.placements[1:]] == [Reason.FLIGHT] * 5
    (engine_id,) = {p.engine.id for p in plan.placements}
    assert charged(it)[engine_id] == ["a0"]
    add(it, "late")
    assert placed(it) == {"late": engine_id}
    assert charged(it)[engine_id] == ["a0"]
    assert not len(it.ready)
    assert it.equals.is_idle


def test_the_prefix_of_one_that_is_charged_in_turn_stays_resident() -> None:
    it = core("e1", "e2")
    first, second = share(it, add(it, "a"), ("prefix", 500)), add(it, "b")
    second.prefix, second.prompt_tokens = first.prefix, first.prompt_tokens
    assert len(placed(it, 60_000.0)) == 2
    home = it.engines[first.engine]
    it.finish(first)
    assert home.outstanding == [second.id]
    assert home.cached_tokens(second, 60_001.0) == 500


def test_what_is_not_equal_is_spread() -> None:
    it = core("e1", "e2")
    add(it, "a", sampling={"seed": 1})
    add(it, "b", sampling={"seed": 2})
    add(it, "c", sampling={"temperature": 0.5})
    add(it, "d", sampling={"temperature": 0.5})
    assert sorted(placed(it).values()) == ["e1", "e1", "e2", "e2"]
    assert [flight_digest(node_of(it, n)) is None for n in "abcd"] == [False, False, True, True]


def test_off_each_is_placed_by_itself_and_the_engine_is_told() -> None:
    it = core("e1", "e2", single_flight=False)
    for name in ("a", "b"):
        add(it, name)
    assert sorted(placed(it).values()) == ["e1", "e2"]
    assert orjson.loads(plan_json(node_of(it, "a")))["flight"] == ""


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({}, {}, True),
        ({"transform": ["strip", ""]}, {}, True),
        ({"priority": 3}, {}, True),
        ({"sampling": {"max_tokens": 4}}, {}, False),
        ({"sampling": {"temperature": 1.0, "seed": 0}}, {"sampling": {"seed": 0, "temperature": 1.0}}, True),
        ({"sampling": {"temperature": 1.0, "seed": 0}}, {"sampling": {"temperature": 1.0, "seed": 1}}, False),
        ({"model": "stub"}, {}, False),
        ({"share_prefixes": True}, {}, False),
        ({"prompt_end": 9}, {}, False),
        ({"function": "g"}, {}, False),
        ({"bindings": {"i0": {"text": "x"}}}, {"bindings": {"i0": {"text": "x"}}}, True),
        ({"bindings": {"i0": {"text": "x"}}}, {"bindings": {"i0": {"text": "y"}}}, False),
        ({"bindings": {"i0": {"text": "x"}}}, {"bindings": {"i1": {"text": "x"}}}, False),
    ],
)
def test_what_is_in_a_digest(one: dict[str, Any], other: dict[str, Any], same: bool) -> None:
    it = core("e1")
    digests = [flight_digest(add(it, name, **fields)) for name, fields in (("a", one), ("b", other))]
    assert all(digest is not None and len(digest) == 32 for digest in digests)
    assert (digests[0] == digests[1]) is same


def test_digests_are_of_values_and_of_a_tenant() -> None:
    it = core("e1")
    digests = {}
    for name, value, tenant, raw in (
        ("same", "d1", "acme", ()),
        ("equal", "d1", "acme", ()),
        ("else", "d2", "acme", ()),
        ("other", "d1", "other", ()),
        ("raw", "d1", "acme", ("0-v-i-raw",)),
    ):
        it.graph.variable(f"0-v-i-{name}")
        it.resolve(f"0-v-i-{name}", value, 4)
        digests[name] = flight_digest(add(it, name, [f"i-{name}"], tenant=tenant, raw_inputs=raw, share_prefixes=True))
    assert digests["same"] == digests["equal"]
    assert len(set(digests.values())) == 4
    unknown = add(it, "unknown", ["nobody"])
    assert flight_digest(unknown) is None


def test_the_most_urgent_stands_for_all() -> None:
    it = core("e1", slots=1)
    add(it, "runs", sampling={"seed": 9})
    placed(it)
    it.engines["e1"].suspended = True
    add(it, "slow", at_ms=2000)
    add(it, "slower", at_ms=3000)
    quick = add(it, "quick", at_ms=500)
    assert [node.id for node in it.ready] == [quick.id]
    add(it, "before", at_ms=100, sampling={"seed": 8})
    found = standing(it, "0-r-slower", 0.0)
    assert found is not None
    assert (found.held, found.num_before) == (False, 1)
    it.finish(node_of(it, "before"))
    it.finish(quick)
    assert [node.id for node in it.ready] == ["0-r-slow"]
    it.want("0-v-slower", THROUGHPUT)
    assert [node.id for node in it.ready] == ["0-r-slow"]
    it.finish(node_of(it, "slow"))
    assert [node.id for node in it.ready] == ["0-r-slower"]
    it.finish(node_of(it, "slower"))
    assert not len(it.ready)
    assert not it.equals.flights._ready


@pytest.mark.parametrize("end", ["finish", "waiting", "ready", "refused", "adopted"])
def test_when_the_charged_one_ends_another_is_charged(end: str) -> None:
    it = core("e1", "e2")
    for n in range(3):
        add(it, f"a{n}")
    engine_id = placed(it)["a0"]
    first = node_of(it, "a0")
    if end == "finish":
        it.finish(first)
    elif end == "waiting":
        it.make_waiting(first, 5)
    elif end == "ready":
        it.make_ready(first, 5)
    elif end == "refused":
        it.put_back(first, engine_gone=False)
    else:
        other = {"e1": "e2", "e2": "e1"}[engine_id]
        it.adopt(first, other, "2.x")
        assert charged(it)[other] == ["a0"]
    assert charged(it)[engine_id] == ["a1"]
    if end in ("ready", "refused"):
        assert placed(it) == {"a0": engine_id}
        assert charged(it)[engine_id] == ["a1"]


def test_a_follower_that_ends_changes_no_charge() -> None:
    it = core("e1")
    for n in range(3):
        add(it, f"a{n}")
    placed(it)
    it.finish(node_of(it, "a1"))
    assert charged(it) == {"e1": ["a0"]}
    it.finish(node_of(it, "a0"))
    it.finish(node_of(it, "a2"))
    assert charged(it) == {"e1": []}
    assert not it.equals.flights._of
    assert not it.equals.flights._newest


def test_nobody_follows_to_an_engine_that_takes_nothing() -> None:
    it = core("e1", "e2")
    add(it, "a")
    engine_id = placed(it)["a"]
    it.engines[engine_id].suspended = True
    for n in range(3):
        add(it, f"b{n}")
    other = {"e1": "e2", "e2": "e1"}[engine_id]
    assert placed(it) == {f"b{n}": other for n in range(3)}
    assert charged(it)[other] == ["b0"]


def test_a_dead_engine_has_all_that_was_given_to_it() -> None:
    it = core("e1")
    for n in range(3):
        add(it, f"a{n}")
    placed(it)
    assert sorted(it.equals.outstanding("e1")) == ["0-r-a0", "0-r-a1", "0-r-a2"]
    it.forget_engine("e1")
    assert [node_of(it, f"a{n}").engine for n in range(3)] == ["", "", ""]
    assert not it.equals.flights._of


def test_a_flight_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flights, "MAX_MEMBERS", 3)
    it = core("e1", slots=8)
    for n in range(8):
        add(it, f"a{n}")
    while it.decide(0.0).more:
        pass
    assert charged(it) == {"e1": ["a0", "a3", "a6"]}
    assert len(it.equals.flights._of) == 8


def test_lanes_are_charged_once_as_well() -> None:
    it = core("e1", slots=8, lane_credits=8)
    it.lanes.granted({"": Lane("e1", 8)})
    for n in range(3):
        add(it, f"a{n}")
    for n in range(3):
        it.took_lane(node_of(it, f"a{n}"), 3, "e1", f"{n}.x", 0.0)
    assert charged(it) == {"e1": ["a0"]}
    assert not len(it.ready)
    assert len(it.equals.outstanding("e1")) == 3
    assert placed(it) == {}


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["submit", "decide", "finish", "back off", "give back", "refuse", "suspend", "want", "lane"]),
        st.integers(0, 99),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(ACTIONS, st.integers(0, 1000))
def test_each_ready_request_is_placed_once_and_each_flight_is_charged_once(
    actions: list[tuple[str, int]], seed: int
) -> None:
    dice = random.Random(seed)
    it = core("e1", "e2", slots=2)
    rev = 10
    for count, (action, number) in enumerate(actions):
        rev += 1
        nodes = list(it.graph.requests.values())
        node = nodes[number % len(nodes)] if nodes else None
        if action == "submit":
            sampling = [{}, {"seed": 1}, {"temperature": 0.3}][number % 3]
            add(it, f"n{count}", sampling=sampling, tenant=["acme", "other"][number % 2], at_ms=dice.randrange(5000))
        elif action == "decide":
            decide_all(it)
        elif action == "suspend":
            load = it.engines[f"e{1 + number % 2}"]
            load.suspended = not load.suspended
        elif node is None:
            continue
        elif action == "finish":
            it.finish(node)
        elif action == "back off":
            it.make_waiting(node, rev)
        elif action == "give back":
            it.make_ready(node, rev)
        elif action == "refuse" and node.engine:
            it.put_back(node, engine_gone=number % 2 == 0)
        elif action == "want":
            it.want(node.output.id, THROUGHPUT)
        elif action == "lane" and not node.engine and node.state is RequestState.READY:
            it.took_lane(node, rev, f"e{1 + number % 2}", "1.x", 0.0)
        check(it)
    for load in it.engines.values():
        load.suspended = False
    for node in list(it.graph.requests.values()):
        if node.state is RequestState.WAITING:
            it.make_ready(node, rev + 1)
    while it.graph.requests:
        decide_all(it)
        placed_nodes = [node for node in it.graph.requests.values() if node.engine]
        assert placed_nodes, "ready requests are stuck"
        for node in placed_nodes:
            it.finish(node)
            check(it)
    books = it.equals.flights
    assert not len(it.ready)
    assert (books._ready, books._boarding, books._newest, books._of) == ({}, {}, {}, {})
    assert charged(it) == {"e1": [], "e2": []}


def decide_all(it: Core) -> None:
    ready = {node.id for node in it.graph.requests.values() if node.state is RequestState.READY}
    more = True
    while more:
        plan = it.decide(0.0)
        for placement in plan.placements:
            ready.remove(placement.request.id)  # KeyError: it is placed twice, or was not ready
        more = plan.more and bool(plan.placements)


def check(it: Core) -> None:
    """Requests on an engine are charged or go along; ready ones stand in the queue, or behind one that does."""
    on_engine: dict[str, set[str]] = {"e1": set(), "e2": set()}
    for node in it.graph.requests.values():
        if node.engine:
            on_engine[node.engine].add(node.id)
        assert (node in it.equals) == (node.state is RequestState.READY)
    for load in it.engines.values():
        assert set(it.equals.outstanding(load.id)) == on_engine[load.id]
        assert len(it.equals.outstanding(load.id)) == len(on_engine[load.id])
    standing = [node.flight for node in it.ready if node.flight]
    assert len(set(standing)) == len(standing)


# With a store ---------------------------------------------------------------------------------------------------------


async def test_equal_calls_meet_on_one_engine(
    app: App, engines: Callable[..., Awaitable[StubEngine]], running: Start
) -> None:
    both = [await engines(name, slots=1) for name in ("e1", "e2")]
    for one in both:
        one.gate.clear()
    running(Scheduler(app.store, ON))
    shared = app.value("text")
    outputs = [app.call([shared]) for _ in range(5)]
    await app.submit()
    await until(lambda: sum(len(one.plans) for one in both) == 5)
    assert sorted(len(one.plans) for one in both) == [0, 5]
    plans = [plan for one in both for plan in one.plans.values()]
    assert len({orjson.loads(plan)["flight"] for plan in plans}) == 1
    for one in both:
        one.gate.set()
    for output in outputs:
        assert (await app.get(output)).value == "text"


async def test_what_goes_along_goes_at_once(
    app: App, engines: Callable[..., Awaitable[StubEngine]], running: Start
) -> None:
    """Not at the next poll of the engines, which is far away here."""
    stub = await engines("e1", slots=1)
    stub.gate.clear()
    running(Scheduler(app.store, dataclasses.replace(ON, engine_poll_s=10 * WAIT_S)))
    shared = app.value("text")
    app.call([shared])
    await app.submit()
    await until(lambda: len(stub.plans) == 1)
    app.call([shared])
    await app.submit()
    await until(lambda: len(stub.plans) == 2)
    stub.gate.set()


async def test_what_is_equal_and_on_a_dead_engine_runs_elsewhere(
    app: App, engines: Callable[..., Awaitable[StubEngine]], running: Start
) -> None:
    first = await engines("e1", slots=1)
    first.gate.clear()
    running(Scheduler(app.store, ON))
    shared = app.value("text")
    outputs = [app.call([shared]) for _ in range(3)]
    await app.submit()
    await until(lambda: len(first.claims) == 3)
    await first.kill()
    await engines("e2", slots=1)
    for output in outputs:
        assert (await app.get(output)).value == "text"


async def test_siblings_that_are_equal_count_once(
    app: App, engines: Callable[..., Awaitable[StubEngine]], running: Start
) -> None:
    """An engine that holds a group until all are there must not wait for those that have no sequence of their own."""
    stub = await engines("e1", slots=8)
    texts = [app.value(text) for text in ("one", "two", "three")]
    maps = [app.call([text]) for text in (*texts, texts[0])]
    final = app.call(maps)
    requests = await app.submit()
    await app.want(final, LATENCY)
    running(Scheduler(app.store, ON))
    assert (await app.get(final)).value == "one+two+three+one"
    plans = [orjson.loads(stub.plans[request]) for request in requests[:4]]
    assert len({plan["group"] for plan in plans}) == 1
    assert [plan["group_size"] for plan in plans] == [3] * 4
