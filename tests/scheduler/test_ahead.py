"""Hints about requests that wait: when, to whom, once, and what becomes of them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from parrot_mq.messages import (
    CostModel,
    EngineRecord,
    EngineState,
    FunctionRecord,
    PrefixHint,
    RequestState,
    Segment,
    SegmentKind,
)
from parrot_mq.scheduler.core import Core
from parrot_mq.scheduler.hints import Order, OrderKind
from parrot_mq.scheduler.nodes import Arrival, RequestNode
from parrot_mq.scheduler.policy import ahead as rules
from parrot_mq.settings import SchedulerSettings
from tests.scheduler import support

LONG = 4 * 400
"""Bytes of a constant of 400 tokens: 40 ms of prefill on the engines here."""
SHORT = 4 * 16
PREFILL, RETAIN, RELEASE = OrderKind.PREFILL, OrderKind.RETAIN, OrderKind.RELEASE
ALL = SchedulerSettings(single_flight=False)
EAGER = SchedulerSettings(single_flight=False, streamed_prefill=False)
ONLY_EAGER = SchedulerSettings(single_flight=False, streamed_prefill=False, retain_prefixes=False)
ONLY_STREAMED = SchedulerSettings(single_flight=False, eager_prefill=False, retain_prefixes=False)
ONLY_RETAIN = SchedulerSettings(single_flight=False, eager_prefill=False, streamed_prefill=False)
OFF = SchedulerSettings(single_flight=False, eager_prefill=False, streamed_prefill=False, retain_prefixes=False)


def engine(name: str, **fields: Any) -> EngineRecord:
    """An engine of 16,000 tokens of memory."""
    return support.engine(name, **{"num_blocks": 1000, "num_free_blocks": 1000, **fields})


class World:
    """A core, its engines and templates; ``orders`` looks at what is to be looked at, and returns what came of it."""

    def __init__(self, *engines: EngineRecord, settings: SchedulerSettings = ALL) -> None:
        self.core = Core(settings)
        self.records = {record.id: record for record in engines or (engine("e1"),)}
        self.core.update_engines(dict(self.records))
        self.templates: dict[str, tuple[int | str, ...]] = {}
        self.now_ms = 0.0

    def template(self, name: str, *parts: int | str) -> None:
        """Make the template of function ``name``: a number is a constant of so many bytes, a string a placeholder."""
        segments = [
            Segment(SegmentKind.INPUT, part)
            if isinstance(part, str)
            else Segment(SegmentKind.CONSTANT, (f"{name} {index} " * part)[:part])
            for index, part in enumerate(parts)
        ]
        self.templates[name] = parts
        record = FunctionRecord(name, (*segments, Segment(SegmentKind.OUTPUT, "out")))
        self.core.describe(self.core.templates.store((0, "acme", name), record), self.now_ms / 1000)

    def add(self, name: str, function: str, inputs: dict[str, str] | None = None, **fields: Any) -> RequestNode:
        """Submit a request ``name`` of ``function``, its placeholders bound to variables by their short names."""
        inputs = inputs or {}
        pending = [
            v for i in inputs.values() if (v := self.core.graph.variables.get(f"0-v-{i}")) is None or not v.resolved
        ]
        spec = support.spec_of(name) | {
            "function": function,
            "prompt_end": len(self.templates[function]),
            "bindings": {placeholder: {"variable": f"0-v-{i}"} for placeholder, i in inputs.items()},
            "sampling": {"max_tokens": 100},
            **fields,
        }
        state = RequestState.WAITING if pending else RequestState.READY
        node = self.core.add(spec, Arrival("acme", "batch", 1000), 1, state, 0.0)
        assert node is not None
        self.core.enqueue(node)
        return node

    def value(self, name: str, num_bytes: int = 400) -> str:
        """Resolve a variable that unfinished requests know."""
        self.core.resolve(f"0-v-{name}", f"digest of {name}", num_bytes)
        return name

    def dispatch(self) -> dict[str, str]:
        return support.placed(self.core, self.now_ms)

    def end(self, node: RequestNode, num_bytes: int = 400) -> None:
        """A request completed: its output has a value, and who waited for nothing else is ready."""
        self.core.resolve(node.output.id, f"digest of {node.output.id}", num_bytes)
        consumers = list(node.output.consumers.values())
        self.core.finish(node)
        for consumer in consumers:
            if all(v.resolved for v in consumer.inputs):
                self.core.make_ready(consumer, consumer.rev + 1)

    def orders(self) -> list[Order]:
        rounds = 0
        while self.core.ahead.settle(self.now_ms, 10):
            assert (rounds := rounds + 1) < 10_000, "requests make each other look again for ever"
        self.core.ahead.check()
        orders = list(self.core.ahead.orders)
        self.core.ahead.orders.clear()
        return orders

    def kinds(self) -> list[tuple[OrderKind, str]]:
        return [(order.kind, order.engine) for order in self.orders()]


def chain(settings: SchedulerSettings = EAGER, *engines: EngineRecord) -> tuple[World, RequestNode, RequestNode]:
    """A request, and one that reads its output behind 400 tokens of its own."""
    world = World(*engines, settings=settings)
    world.template("first", SHORT)
    world.template("second", LONG, "x", SHORT)
    return world, world.add("a", "first"), world.add("b", "second", {"x": "a"})


def test_a_known_prefix_is_computed_where_its_producer_runs_once_that_was_dispatched() -> None:
    world, _, consumer = chain(EAGER, engine("e1"), engine("e2"))
    assert world.orders() == []
    (home,) = world.dispatch().values()
    [order] = world.orders()
    assert (order.kind, order.engine) == (PREFILL, home)
    hint = order.hint
    assert hint is not None
    assert (hint.function, hint.end, hint.bindings, hint.follow) == ("second", 1, {}, "")
    assert (hint.key, hint.retain_s) == (order.key, rules.RETAIN_S)
    assert (consumer.planned_engine, consumer.planned_tokens) == (home, 400)
    world.core.ahead._look_at(consumer)
    assert world.orders() == []


def test_the_prefix_is_released_when_its_reader_is_done_and_not_before() -> None:
    world, producer, consumer = chain()
    world.dispatch()
    assert world.kinds() == [(PREFILL, "e1")]
    world.end(producer)
    assert world.kinds() == []
    assert world.dispatch() == {"b": "e1"}
    assert world.kinds() == []
    assert (consumer.planned_engine, consumer.planned_tokens) == ("", 0)
    world.end(consumer)
    assert world.kinds() == [(RELEASE, "e1")]
    assert world.core.ahead.num_waiting == 0


@pytest.mark.parametrize("settings", [EAGER, ONLY_EAGER], ids=["kept", "computed"])
def test_a_prefix_has_as_many_replicas_as_its_readers_need(settings: SchedulerSettings) -> None:
    """Eight readers, and two slots an engine: four engines have it, and each lets it go with its last reader."""
    world = World(*(engine(f"e{n}", slots=2) for n in range(6)), settings=settings)
    world.template("first", SHORT)
    world.template("second", LONG, "x")
    producer = world.add("a", "first")
    readers = [world.add(f"b{n}", "second", {"x": "a"}) for n in range(8)]
    world.dispatch()
    orders = world.orders()
    assert [order.kind for order in orders] == [PREFILL] * 4
    assert len({order.key for order in orders}) == 1
    homes = {order.engine for order in orders}
    assert len(homes) == 4
    assert Counter(reader.planned_engine for reader in readers) == dict.fromkeys(homes, 2)
    world.end(producer)
    assert set(world.dispatch().values()) == homes
    given_back = readers[:3]
    for reader in readers[3:]:
        world.end(reader)
    still = {reader.engine for reader in given_back}
    released = [engine_id for kind, engine_id in world.kinds() if kind is RELEASE]
    if settings.retain_prefixes:
        assert sorted(released) == sorted(homes - still)
    for reader in given_back:
        world.end(reader)
    world.orders()
    assert world.core.ahead.num_waiting == 0


def test_readers_for_whom_there_is_no_slot_count_on_the_next_engine_that_has_their_prefix() -> None:
    world = World(engine("e1", slots=2), engine("e2", slots=2), settings=ONLY_RETAIN)
    world.template("first", SHORT)
    world.template("second", LONG, "x", "y")
    slow = world.add("slow", "first")
    assert world.dispatch() == {"slow": "e1"}
    readers = [world.add(f"b{n}", "second", {"x": "slow", "y": "never"}) for n in range(4)]

    def somebody_reads(name: str, engine_id: str) -> None:
        node = world.add(name, "second", {"x": world.value("given"), "y": "given"})
        world.core.adopt(node, engine_id, "fence")
        world.core.finish(node)

    world.core.graph.variable("0-v-given")
    somebody_reads("early", "e1")
    assert world.kinds() == [(RETAIN, "e1")]
    assert {reader.planned_engine for reader in readers} == {"e1"}
    somebody_reads("later", "e2")
    assert world.kinds() == [(RETAIN, "e2")]
    assert Counter(reader.planned_engine for reader in readers) == {"e1": 2, "e2": 2}
    for reader in readers:
        world.core.finish(reader)
    assert sorted(world.kinds()) == [(RELEASE, "e1"), (RELEASE, "e2")]
    world.core.finish(slow)


def test_of_many_engines_any_may_be_planned_for() -> None:
    """A hundred engines, all but the last two of which take nothing."""
    leaving = [dataclasses.replace(engine(f"e{n:02}", slots=1), state=EngineState.DRAINING) for n in range(98)]
    world = World(*leaving, engine("e98", slots=1), engine("e99", slots=1), settings=EAGER)
    world.template("first", SHORT)
    world.template("second", LONG, "x")
    world.add("a", "first")
    readers = [world.add(f"b{n}", "second", {"x": "a"}) for n in range(2)]
    assert len(world.dispatch()) == 1
    world.orders()
    assert {reader.planned_engine for reader in readers} == {"e98", "e99"}


def test_an_engine_that_comes_later_is_planned_for() -> None:
    world = World(engine("e1", model="other"), settings=ONLY_EAGER)
    world.template("first", SHORT)
    world.template("second", LONG, "x")
    world.add("a", "first", model="other")
    readers = [world.add(f"b{n}", "second", {"x": "a"}, model="stub") for n in range(40)]
    world.dispatch()
    assert world.orders() == []
    world.core.update_engines(world.records | {"e2": engine("e2", slots=40)})
    world.now_ms += 1000
    assert world.kinds() == [(PREFILL, "e2")]
    assert {reader.planned_engine for reader in readers} == {"e2"}


@pytest.mark.parametrize("size", [SHORT, 4 * (rules.MIN_TOKENS - 1)])
def test_a_short_prefix_is_worth_nothing(size: int) -> None:
    world = World(settings=EAGER)
    world.template("first", SHORT)
    world.template("second", size, "x")
    world.add("a", "first")
    world.add("b", "second", {"x": "a"})
    world.dispatch()
    assert world.orders() == []


def test_what_is_worth_a_hint_is_a_matter_of_the_engines_speed() -> None:
    fast = engine("e1", cost=CostModel(rules.WORTH_MS / 401, 5.0, 0.5))
    world, *_ = chain(EAGER, fast)
    world.dispatch()
    assert world.orders() == []
    assert rules.is_worth(world.core.engines["e1"], 402)


def test_a_prefix_that_is_there_is_not_computed_but_kept() -> None:
    world = World(settings=EAGER)
    world.template("first", SHORT)
    world.template("second", LONG, "x")
    world.add("a", "first")
    world.core.graph.variable("0-v-given")
    world.add("early", "second", {"x": "given"})
    world.value("given")
    world.core.make_ready(world.core.graph.requests["0-r-early"], 2)
    world.add("b", "second", {"x": "a"})
    assert world.dispatch() == {"a": "e1", "early": "e1"}
    assert world.kinds() == [(RETAIN, "e1")]


def test_a_thousand_requests_with_one_prefix_are_one_hint() -> None:
    world = World(engine("e1", slots=4))
    world.template("first", SHORT)
    world.template("second", LONG, "x", "y")
    producers = [world.add(f"a{n}", "first") for n in range(4)]
    for n in range(1000):
        world.add(f"b{n}", "second", {"x": f"a{n % 4}", "y": f"a{(n + 1) % 4}"})
    assert len(world.dispatch()) == 4
    orders = world.orders()
    [kept] = [order for order in orders if order.kind is RETAIN]
    follows = [order.hint.follow for order in orders if order.kind is PREFILL and order.hint is not None]
    assert sorted(follows) == sorted(producer.output.id for producer in producers)  # behind it, one for each input
    assert len(orders) == 5
    for producer in producers:
        world.end(producer)
    out, num_orders = {kept.key}, 5
    while world.core.graph.requests:
        for order in world.orders():
            assert (order.kind is RELEASE) is (order.key in out)
            out ^= {order.key}
            num_orders += 1
        assert out, "somebody waits, and nothing is kept"
        world.dispatch()
        for node in [node for node in world.core.graph.requests.values() if node.engine]:
            world.end(node)
    # The prefix gives way to the four that go on with an input, these to the four with both, each of them kept once.
    last = world.orders()
    assert {order.kind for order in last} == {RELEASE}
    assert {order.key for order in last} == out
    assert num_orders + len(last) == 5 + 1 + 2 * (4 + 4)
    assert world.core.ahead.num_waiting == 0


def test_a_prefix_is_kept_while_somebody_still_reads_it() -> None:
    world = World(engine("e1", slots=8), settings=ONLY_RETAIN)
    world.template("first", SHORT)
    world.template("second", LONG, "x")
    slow, quick = world.add("slow", "first"), world.add("quick", "first")
    for name in ("slow", "quick"):
        world.add(f"after {name}", "second", {"x": name})
    world.dispatch()
    assert world.orders() == []  # nobody has it
    world.end(quick)
    assert world.dispatch() == {"after quick": "e1"}
    assert world.kinds() == [(RETAIN, "e1")]
    world.end(world.core.graph.requests["0-r-after quick"])
    assert world.orders() == []
    world.end(slow)
    world.dispatch()
    assert world.orders() == []
    world.end(world.core.graph.requests["0-r-after slow"])
    assert world.kinds() == [(RELEASE, "e1")]


def test_a_ready_request_that_must_wait_for_a_slot_keeps_its_prefix() -> None:
    world = World(engine("e1", slots=1, cost=CostModel(0.1, 1000.0, 0.5)), settings=ONLY_RETAIN)
    world.template("f", LONG)
    nodes = [world.add(f"{n}", "f") for n in range(3)]
    assert world.dispatch() == {"0": "e1", "1": "e1"}  # one runs, one is dispatched ahead
    assert world.kinds() == [(RETAIN, "e1")]
    world.end(nodes[0])
    assert world.dispatch() == {"2": "e1"}
    world.end(nodes[1])
    assert world.orders() == []
    world.end(nodes[2])
    assert world.kinds() == [(RELEASE, "e1")]


def test_a_hint_to_keep_something_is_renewed_while_it_is_needed() -> None:
    world, producer, consumer = chain()
    world.dispatch()
    assert world.kinds() == [(PREFILL, "e1")]
    for _ in range(3):
        world.now_ms += 499 * rules.RETAIN_S
        assert world.orders() == []
        world.now_ms += 2 * rules.RETAIN_S
        [order] = world.orders()
        assert order.kind is RETAIN
        assert order.hint is not None
        assert order.hint.retain_s == rules.RETAIN_S
    world.end(producer)
    world.dispatch()
    world.end(consumer)
    assert world.kinds() == [(RELEASE, "e1")]
    world.now_ms += 10_000 * rules.RETAIN_S
    assert world.orders() == []


def test_an_input_that_is_generated_is_followed() -> None:
    world, producer, consumer = chain(ALL)
    world.dispatch()
    follow, keep = sorted(world.orders(), key=lambda order: order.kind)
    assert (follow.kind, follow.engine, keep.kind) == (PREFILL, "e1", RETAIN)
    assert follow.hint is not None
    assert (follow.hint.end, follow.hint.follow) == (1, producer.output.id)
    assert follow.key != keep.key
    world.core.resolve(producer.output.id, "d", 4 * 90)
    assert (consumer.planned_engine, consumer.planned_tokens) == ("e1", 490)
    world.end(producer)
    world.dispatch()
    world.end(consumer)
    assert [(o.kind, o.key) for o in world.orders()] == [(RELEASE, keep.key)]  # what it followed has ended by itself


def test_a_short_beginning_before_a_long_input_is_followed_as_well() -> None:
    world = World(settings=ONLY_STREAMED)
    world.template("first", SHORT)
    world.template("second", 8, "x")
    world.add("a", "first", sampling={"max_tokens": 500})
    world.add("b", "second", {"x": "a"})
    world.dispatch()
    [order] = world.orders()
    assert order.hint is not None
    assert (order.kind, order.hint.end, order.hint.follow, order.hint.retain_s) == (PREFILL, 1, "0-v-a", 0.0)


def test_an_input_that_a_prompt_begins_with_is_followed() -> None:
    world = World(settings=ALL)
    world.template("first", SHORT)
    world.template("second", "x", LONG)
    producer = world.add("a", "first", sampling={"max_tokens": 500})
    consumer = world.add("b", "second", {"x": "a"})
    world.dispatch()
    [order] = world.orders()
    assert order.hint is not None
    assert (order.kind, order.hint.end, order.hint.bindings, order.hint.follow) == (PREFILL, 0, {}, "0-v-a")
    assert PrefixHint.from_json(order.hint.to_json()) == order.hint
    world.value("a", 4 * 500)
    assert (consumer.planned_engine, consumer.planned_tokens) == ("e1", 500)
    world.end(producer)
    assert world.kinds() == [(RETAIN, "e1")]  # what was followed is there, and is kept until it is read
    assert world.dispatch() == {"b": "e1"}
    world.end(consumer)
    assert world.kinds() == [(RELEASE, "e1")]


@pytest.mark.parametrize("fields", [{}, {"follow": "0-v-a", "retain_s": 1.0}])
def test_a_hint_about_no_segment_is_one_to_follow_or_none(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="without a segment"):
        PrefixHint("key", "acme", "f", 0, **fields)


@pytest.mark.parametrize(
    ("producer", "consumer"),
    [({"transform": ["strip", ""]}, {}), ({}, {"raw_inputs": ["0-v-a"]}), ({"model": "other"}, {"model": "stub"})],
)
def test_what_is_not_read_as_it_is_generated_is_not_followed(
    producer: dict[str, Any], consumer: dict[str, Any]
) -> None:
    world = World(engine("e1"), engine("e2", model="other"), settings=ONLY_STREAMED)
    world.template("first", SHORT)
    world.template("second", LONG, "x")
    world.add("a", "first", **producer)
    world.add("b", "second", {"x": "a"}, **consumer)
    assert len(world.dispatch()) == 1
    assert world.orders() == []


def test_a_continuation_of_a_call_finds_its_prefix_where_the_call_runs() -> None:
    """Its prompt is the earlier prompt and its raw output: what the engine has computed anyway."""
    world = World()
    world.template("both", LONG, "x", SHORT)
    world.add("a", "both", prompt_end=1)
    continuation = world.add("b", "both", {"x": "a"}, raw_inputs=["0-v-a"])
    world.dispatch()
    assert world.kinds() == [(RETAIN, "e1")]
    assert (continuation.planned_engine, continuation.planned_tokens) == ("e1", 400)


def test_the_prefix_grows_as_inputs_are_resolved() -> None:
    world = World(settings=EAGER)
    world.template("first", SHORT)
    world.template("second", SHORT, "x", "y", LONG)
    a, b = world.add("a", "first"), world.add("b", "first")
    reader = world.add("c", "second", {"x": "a", "y": "b"})
    world.dispatch()
    assert world.orders() == []
    world.end(a, 4 * 300)
    [order] = world.orders()
    assert order.hint is not None
    assert (order.kind, order.hint.end, reader.planned_tokens) == (PREFILL, 2, 316)
    assert order.hint.bindings["x"].variable == "0-v-a"
    world.end(b)
    world.dispatch()
    world.end(reader)
    assert [(o.kind, o.key) for o in world.orders()] == [(RELEASE, order.key)]


def test_a_longer_prefix_takes_the_place_of_a_shorter_one() -> None:
    world = World(settings=EAGER)
    world.template("first", SHORT)
    world.template("second", LONG, "x", "y")
    a = world.add("a", "first")
    world.add("b", "first")
    world.add("c", "second", {"x": "a", "y": "b"})
    world.dispatch()
    [short] = world.orders()
    world.end(a, LONG)
    longer, released = world.orders()
    assert (longer.kind, released.kind, released.key) == (PREFILL, RELEASE, short.key)


def test_what_is_cancelled_takes_its_hints_back() -> None:
    for settings, expected in ((EAGER, 1), (ONLY_EAGER, 1), (ONLY_STREAMED, 1), (ALL, 2)):
        world, _, consumer = chain(settings)
        world.dispatch()
        given = {order.key for order in world.orders()}
        assert len(given) == expected
        world.core.finish(consumer)
        orders = world.orders()
        assert {order.key for order in orders} == given
        assert {order.kind for order in orders} == {RELEASE}


def test_plans_that_change_take_the_hints_back() -> None:
    world, producer, _ = chain(EAGER, engine("e1"), engine("e2"))
    (home,) = world.dispatch().values()
    other = {"e1": "e2", "e2": "e1"}[home]
    [order] = world.orders()
    world.end(producer)
    world.core.engines[home].suspended = True
    assert world.dispatch() == {"b": other}
    assert [(o.kind, o.engine, o.key) for o in world.orders()] == [(RELEASE, home, order.key)]


def test_another_engine_takes_over_from_one_that_died() -> None:
    world, producer, consumer = chain(ALL, engine("e1"), engine("e2"))
    (home,) = world.dispatch().values()
    other = {"e1": "e2", "e2": "e1"}[home]
    given = {order.key for order in world.orders()}
    world.core.update_engines({other: world.records[other]})
    world.core.forget_engine(home)
    assert world.orders() == []  # what it follows runs nowhere
    world.core.make_ready(producer, producer.rev + 1)
    assert world.dispatch() == {"a": other}
    orders = world.orders()
    assert {(order.engine, order.key) for order in orders} == {(other, key) for key in given}
    assert consumer.planned_engine == other
    world.end(producer)
    world.dispatch()
    world.end(consumer)
    assert world.kinds() == [(RELEASE, other)]
    assert world.core.ahead.num_waiting == 0


def test_a_producer_that_is_given_back_is_no_producer_until_it_starts_again() -> None:
    world, producer, _ = chain()
    world.dispatch()
    world.core.put_back(producer, engine_gone=False)
    assert world.orders() == []
    world.dispatch()
    assert world.kinds() == [(PREFILL, "e1")]


def test_a_new_leader_hints_anew() -> None:
    world, *_ = chain()
    world.dispatch()
    [order] = world.orders()
    taken_over = World(settings=EAGER)
    taken_over.template("first", SHORT)
    taken_over.template("second", LONG, "x", SHORT)
    producer = taken_over.add("a", "first")
    taken_over.add("b", "second", {"x": "a"})
    taken_over.core.adopt(producer, "e1", "fence")
    [again] = taken_over.orders()
    assert again == order


def test_templates_that_come_late_are_waited_for() -> None:
    world, *_ = chain()
    late = World(settings=EAGER)
    late.templates |= world.templates
    late.add("a", "first")
    late.add("b", "second", {"x": "a"})
    late.dispatch()
    assert late.orders() == []
    late.template("first", SHORT)
    late.template("second", LONG, "x", SHORT)
    assert late.kinds() == [(PREFILL, "e1")]


def test_no_more_is_computed_ahead_than_the_memory_is_for() -> None:
    # A quarter of 160 blocks of 16 tokens is 640: one prefix of 400, not two.
    world = World(engine("e1", num_blocks=160, num_free_blocks=160), settings=ONLY_EAGER)
    world.template("first", SHORT)
    readers = []
    for n in range(3):
        world.template(f"second{n}", LONG, "x")
        world.add(f"a{n}", "first")
        readers.append(world.add(f"b{n}", f"second{n}", {"x": f"a{n}"}))
    world.dispatch()
    assert world.kinds() == [(PREFILL, "e1")]
    [first] = [node for node in readers if node.planned_engine]
    world.end(world.core.graph.variables[first.inputs[0].id].producer or readers[0])
    world.dispatch()
    assert world.kinds() == [(PREFILL, "e1")]  # read: there is room for the next
    [second] = [node for node in readers if node.planned_engine]
    world.core.finish(second)
    assert sorted(world.kinds()) == [(PREFILL, "e1"), (RELEASE, "e1")]


def test_what_running_sequences_hold_is_not_counted_on_until_it_is_free() -> None:
    world, *_ = chain(ONLY_EAGER, engine("e1", num_free_blocks=40))
    world.dispatch()
    assert world.orders() == []  # half of 640 free tokens is less than 400
    world.core.update_engines({"e1": engine("e1", num_free_blocks=60)})
    assert world.orders() == []
    world.now_ms += 1000
    assert world.kinds() == [(PREFILL, "e1")]


def test_what_is_read_next_is_kept_before_what_is_read_later() -> None:
    # Half of 100 blocks of 16 tokens is 800: one prefix of 500.
    world = World(engine("e1", num_blocks=100), settings=ONLY_RETAIN)
    for name in ("far", "near"):
        world.template(name, 4 * 500, "x")
    world.template("step", SHORT)
    world.template("then", SHORT, "x")
    world.add("a0", "step")
    for n in range(1, 5):
        world.add(f"a{n}", "then", {"x": f"a{n - 1}"})
    world.add("b far", "far", {"x": "a4"})
    world.add("b near", "near", {"x": "a0"})
    for name in ("far", "near"):  # both are in the cache
        world.core.graph.variable(f"0-v-{name}")
        early = world.add(f"early {name}", name, {"x": name}, priority=9)
        world.value(name)
        world.core.make_ready(early, 2)
        assert world.dispatch()[f"early {name}"] == "e1"
        world.end(early)
        kinds = world.kinds()
        assert kinds == ([(RETAIN, "e1")] if name == "far" else [(RELEASE, "e1"), (RETAIN, "e1")])


def test_nothing_is_said_with_the_switches_off() -> None:
    world, producer, consumer = chain(OFF)
    world.dispatch()
    world.end(producer)
    world.dispatch()
    world.end(consumer)
    assert world.orders() == []
    assert world.core.ahead.num_waiting == 0


@pytest.mark.parametrize(
    ("settings", "kinds"), [(ONLY_EAGER, {PREFILL}), (ONLY_STREAMED, {PREFILL}), (ONLY_RETAIN, set())]
)
def test_each_switch_alone(settings: SchedulerSettings, kinds: set[OrderKind]) -> None:
    world, producer, consumer = chain(settings)
    world.dispatch()
    orders = world.orders()
    assert {order.kind for order in orders} == kinds
    assert all(order.hint is not None and order.hint.retain_s == 0 for order in orders)
    assert all(bool(order.hint and order.hint.follow) == settings.streamed_prefill for order in orders)
    world.end(producer)
    world.dispatch()
    world.end(consumer)
    assert world.orders() == []


def test_texts_too_long_for_a_message_are_not_hinted() -> None:
    world = World(settings=EAGER)
    world.template("first", SHORT)
    world.template("second", "doc", "x")
    world.add("a", "first")
    for name, size in (("b", rules.MAX_TEXT_BYTES), ("c", rules.MAX_TEXT_BYTES + 1)):
        bindings = {"doc": {"text": "t" * size}, "x": {"variable": "0-v-a"}}
        world.add(name, "second", {"x": "a"}, bindings=bindings)
    world.dispatch()
    [order] = world.orders()
    assert order.hint is not None
    assert len(order.hint.bindings["doc"].text or "") == rules.MAX_TEXT_BYTES


def test_requests_of_other_salts_and_models_are_hinted_apart() -> None:
    world = World(settings=EAGER)
    world.template("first", SHORT)
    world.template("second", LONG, "x")
    world.add("a", "first")
    for name, fields in (("b", {}), ("c", {"share_prefixes": True}), ("d", {"model": "stub"})):
        world.add(name, "second", {"x": "a"}, **fields)
    world.dispatch()
    orders = world.orders()
    assert len({order.key for order in orders}) == 3
    assert [order.hint.share_prefixes for order in orders if order.hint is not None] == [False, True, False]


SHAPES: dict[str, tuple[int | str, ...]] = {
    "leaf": (SHORT,),
    "wide leaf": (LONG,),
    "one": (LONG, "x", SHORT),
    "two": (SHORT, "x", "y"),
    "long two": (LONG, "x", LONG, "y"),
}


@pytest.mark.parametrize("settings", [ALL, EAGER, ONLY_EAGER, ONLY_STREAMED, ONLY_RETAIN], ids=str)
@given(data=st.data())
@hypothesis_settings(max_examples=25, deadline=None)
def test_whatever_happens_the_books_are_right_and_nothing_is_left_over(
    settings: SchedulerSettings, data: st.DataObject
) -> None:
    """Random graphs, and engines that die: at the end no engine keeps anything, and nothing is remembered."""
    records = [engine(f"e{n}", slots=2, num_blocks=data.draw(st.sampled_from([60, 1000]))) for n in range(3)]
    world = World(*records, settings=settings)
    core = world.core
    for name, parts in SHAPES.items():
        world.template(name, *parts)
    names: list[str] = []
    kept: set[tuple[str, str]] = set()
    """(engine, key) of what hints have put there and none has taken back."""

    def look() -> None:
        for order in world.orders():
            if order.engine not in core.engines:
                continue  # it died before this was sent
            if order.kind is RELEASE:
                kept.discard((order.engine, order.key))
            elif order.hint is not None and order.hint.retain_s:
                kept.add((order.engine, order.key))

    def act(action: str) -> None:
        nodes = list(core.graph.requests.values())
        running = [node for node in nodes if node.engine]
        if action == "add":
            shape = data.draw(st.sampled_from([*SHAPES]))
            placeholders = [part for part in SHAPES[shape] if isinstance(part, str)]
            live = [name for name in names if f"0-v-{name}" in core.graph.variables]
            if not placeholders or live:
                bound = {p: data.draw(st.sampled_from(live)) for p in placeholders}
                raw = [f"0-v-{i}" for i in bound.values() if data.draw(st.integers(0, 9)) == 0]
                names.append(f"n{len(names)}")
                world.add(names[-1], shape, bound, raw_inputs=raw)
        elif action == "dispatch":
            world.dispatch()
        elif action == "die" and len(core.engines) > 1:
            engine_id = data.draw(st.sampled_from([*core.engines]))
            core.update_engines({i: world.records[i] for i in core.engines if i != engine_id})
            held = [node for node in running if node.engine == engine_id]
            core.forget_engine(engine_id)
            kept.difference_update([pair for pair in kept if pair[0] == engine_id])
            for node in held:
                core.make_ready(node, node.rev + 1)
        elif running and action != "die":
            node = data.draw(st.sampled_from(running))
            if action == "end":
                world.end(node, data.draw(st.sampled_from([40, 4000])))
            elif action == "give back":
                core.put_back(node, engine_gone=False)
            elif action == "fail":
                core.make_waiting(node, node.rev + 1)
            elif action == "cancel":
                doomed = [node]
                for one in doomed:
                    doomed += [c for c in one.output.consumers.values() if c not in doomed]
                for one in doomed:
                    core.finish(one)

    actions = ["add"] * 4 + ["dispatch"] * 3 + ["end"] * 3 + ["give back", "fail", "cancel", "die", "look"]
    for action in data.draw(st.lists(st.sampled_from(actions), max_size=60)):
        act(action)
        if data.draw(st.booleans()):
            look()
    for _ in range(10 * len(names) + 10):
        for node in list(core.graph.requests.values()):
            if node.state is RequestState.WAITING and all(v.resolved for v in node.inputs):
                core.make_ready(node, node.rev + 1)
            elif node.engine:
                world.end(node)
        world.dispatch()
        look()
    assert not core.graph.requests
    assert kept == set()
    assert core.ahead.num_waiting == 0
