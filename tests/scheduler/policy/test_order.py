from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from parrot_mq.messages import LATENCY, THROUGHPUT, Objective, ObjectiveKind, RequestState
from parrot_mq.scheduler.graph import Graph
from parrot_mq.scheduler.nodes import Arrival, RequestNode
from parrot_mq.scheduler.policy import ReadyQueue, order_key_ms
from parrot_mq.scheduler.policy.order import DEPTH_MS, MAX_SHIFT_MS, PRIORITY_MS, THROUGHPUT_MS
from tests.scheduler.support import spec_of


def node(
    name: str,
    *,
    at_ms: int = 0,
    objective: Objective | None = LATENCY,
    depth: int = 0,
    priority: int = 0,
    tenant: str = "acme",
    model: str = "",
    tokens: int = 10,
) -> RequestNode:
    made = Graph().add(spec_of(name, model=model, priority=priority), Arrival(tenant, "", at_ms), 1, RequestState.READY)
    assert made is not None
    made.objective, made.depth, made.output_tokens = objective, depth, tokens
    made.key_ms = order_key_ms(made, 0.0)
    return made


def drain(queue: ReadyQueue, models: tuple[str, ...] = ("",)) -> list[str]:
    names = []
    while (first := queue.first(models)) is not None:
        queue.take(first)
        names.append(first.id.removeprefix("0-r-"))
    return names


def filled(*nodes: RequestNode) -> ReadyQueue:
    queue = ReadyQueue()
    for one in nodes:
        queue.put(one)
    return queue


def test_the_older_program_comes_first() -> None:
    assert drain(filled(node("young", at_ms=5), node("old", at_ms=1))) == ["old", "young"]


def test_the_deeper_request_comes_first() -> None:
    assert drain(filled(node("shallow"), node("deep", at_ms=round(DEPTH_MS), depth=2))) == ["deep", "shallow"]


def test_latency_passes_throughput_for_a_bounded_time() -> None:
    batch = node("batch", objective=THROUGHPUT)
    soon = node("soon", at_ms=round(THROUGHPUT_MS) - 1)
    late = node("late", at_ms=round(THROUGHPUT_MS) + 1)
    assert drain(filled(batch, late, soon)) == ["soon", "batch", "late"]


def test_priority_moves_by_seconds() -> None:
    high = node("high", at_ms=round(PRIORITY_MS), priority=2)
    assert drain(filled(node("low", priority=-1), node("none"), high)) == ["high", "none", "low"]


def test_a_deadline_is_as_urgent_as_its_slack() -> None:
    near = node("near", objective=Objective(ObjectiveKind.DEADLINE, at_ms=100))
    far = node("far", objective=Objective(ObjectiveKind.DEADLINE, at_ms=10**9))
    assert drain(filled(far, node("plain", at_ms=500), near)) == ["near", "plain", "far"]
    assert order_key_ms(far, 0.0) == THROUGHPUT_MS


def test_only_the_lines_that_are_asked_for_are_served() -> None:
    queue = filled(node("any"), node("a", model="A"), node("b", model="B"))
    assert drain(queue, ("", "A")) == ["any", "a"]
    assert len(queue) == 1


def test_a_request_put_again_stands_where_its_new_key_says() -> None:
    a, b = node("a"), node("b", at_ms=1)
    queue = filled(a, b)
    a.key_ms = 10.0
    queue.put(a)
    assert drain(queue) == ["b", "a"]


def test_what_was_discarded_does_not_come() -> None:
    a, b = node("a"), node("b", at_ms=1)
    queue = filled(a, b)
    assert queue.discard(a)
    assert not queue.discard(a)
    assert drain(queue) == ["b"]


def test_tenants_are_served_by_tokens_not_by_requests() -> None:
    greedy = [node(f"g{n}", tenant="greedy", tokens=100) for n in range(4)]
    modest = [node(f"m{n}", tenant="modest", tokens=50, at_ms=10**6) for n in range(4)]
    order = drain(filled(*greedy, *modest))
    assert order == ["g0", "m0", "m1", "g1", "m2", "m3", "g2", "g3"]


def test_a_tenant_that_was_idle_saves_nothing_up() -> None:
    queue = filled(*(node(f"a{n}", tenant="a", tokens=100) for n in range(10)))
    for _ in range(8):
        first = queue.first([""])
        assert first is not None
        queue.take(first)
    for n in range(6):
        queue.put(node(f"b{n}", tenant="b", tokens=100, at_ms=10**6))
    assert drain(queue)[:4] != ["b0", "b1", "b2", "b3"]


def test_group_members_and_sharers_are_found_while_they_wait() -> None:
    nodes = [node(f"n{i}") for i in range(5)]
    for i, one in enumerate(nodes):
        one.prefix = (("system", 40), (f"query{i % 2}", 50))
    queue = filled(*nodes)
    assert queue.sharers(nodes[0], 10, 32)[:2] == [nodes[2], nodes[4]]
    assert set(queue.sharers(nodes[0], 10, 32)) == set(nodes[1:])
    assert queue.sharers(nodes[0], 10, 60) == []
    assert len(queue.sharers(nodes[0], 1, 32)) == 1
    for one in nodes:
        queue.take(one)
    assert queue.sharers(nodes[0], 10, 32) == []


def test_memory_follows_what_waits() -> None:
    keeper = node("keeper")
    queue = filled(keeper)
    for n in range(5000):  # each stands behind the keeper, so that none ever comes to the front of the heap
        other = node(f"n{n}", at_ms=n + 1)
        queue.put(other)
        queue.discard(other)
    assert sum(len(heap) for line in queue._lines.values() for heap in line.heaps.values()) < 200
    assert drain(queue) == ["keeper"]


def test_nothing_is_left_of_tenants_that_have_gone_from_a_line_that_is_not_served() -> None:
    """For a model whose engines are away one request waits on, while others come and are cancelled."""
    queue = filled(node("keeper", model="away"), *(node(f"here{n}") for n in range(5000)))
    for n in range(5000):
        other = node(f"n{n}", tenant=f"t{n}", model="away")
        queue.put(other)
        queue.discard(other)
    line = queue._lines["away", False]
    assert len(line.heaps) == len(line.tenants) < 200
    assert drain(queue, ("away",)) == ["keeper"]


requests = st.tuples(
    st.integers(0, 20_000),
    st.sampled_from([None, LATENCY, THROUGHPUT, Objective(ObjectiveKind.DEADLINE, at_ms=1)]),
    st.integers(0, 1000),
    st.integers(-1000, 1000),
)


@settings(max_examples=50, deadline=None)
@given(st.lists(requests, min_size=1, max_size=40))
def test_nobody_starves(arrivals: list[tuple[int, Objective | None, int, int]]) -> None:
    """However urgent the others are: one is never overtaken by what is submitted MAX_SHIFT_MS after it."""
    nodes = [
        node(f"n{i}", at_ms=at_ms, objective=objective, depth=depth, priority=priority)
        for i, (at_ms, objective, depth, priority) in enumerate(arrivals)
    ]
    victim = node("victim", at_ms=0, objective=THROUGHPUT, priority=-1000)
    flood = [node(f"f{i}", at_ms=round(MAX_SHIFT_MS) + 1 + i, depth=10**6, priority=10**6) for i in range(20)]
    order = drain(filled(*flood, victim, *nodes))
    assert sorted(order) == sorted(n.id.removeprefix("0-r-") for n in (*nodes, victim, *flood))
    assert not {name for name in order[: order.index("victim")] if name.startswith("f")}
