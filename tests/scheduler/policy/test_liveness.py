"""Whatever comes, everything is dispatched, once, after a bounded wait, and tenants are served alike."""

from __future__ import annotations

import dataclasses
from collections import Counter
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from parrot_mq.messages import (
    LATENCY,
    THROUGHPUT,
    TPOT,
    CostModel,
    EngineRecord,
    Objective,
    ObjectiveKind,
    RequestState,
)
from parrot_mq.scheduler.nodes import RequestNode
from parrot_mq.scheduler.policy import Placement, Reason
from parrot_mq.scheduler.policy.order import MAX_SHIFT_MS
from tests.scheduler.support import QUICK, add, core_with, engine, share

OBJECTIVES = [
    None,
    LATENCY,
    THROUGHPUT,
    TPOT,
    Objective(ObjectiveKind.TPOT, 20),
    Objective(ObjectiveKind.DEADLINE, 0, 9),
]
STEP_MS = 50.0


class Service:
    """A core whose engines finish, refuse, come and go as ``random`` has it; it counts what is dispatched."""

    def __init__(self, random: Random, records: list[EngineRecord]) -> None:
        self.random = random
        self.records = {record.id: record for record in records}
        self.alive = set(self.records)
        self.core = core_with(*records, settings=dataclasses.replace(QUICK, lane_credits=0))
        self.dispatched: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.now_ms = 0.0
        self.trouble = 60
        """How much goes wrong before all is well: for ever, nothing would be done."""

    def decide(self) -> list[Placement]:
        placements = list(self.core.decide(self.now_ms).placements)
        for placement in placements:
            node = placement.request
            assert node.state is RequestState.QUEUED
            assert node.engine in self.alive
            assert not any(v.producer for v in node.inputs if not v.resolved), "it is ready"
            self.dispatched[node.id] += 1
        return placements

    def running(self) -> list[RequestNode]:
        nodes = self.core.graph.requests.values()
        return sorted((node for node in nodes if node.engine), key=lambda node: node.id)

    def finish(self, node: RequestNode) -> None:
        output = node.output
        self.core.resolve(output.id, "digest", 40)
        consumers = list(output.consumers.values())
        self.core.finish(node, 5)
        for consumer in consumers:
            if all(v.resolved or v.producer is None for v in consumer.inputs):
                self.core.make_ready(consumer, consumer.rev + 1)

    def refuse(self, node: RequestNode) -> None:
        """The store says that the engine is gone, or has no queue: nothing was dispatched."""
        self.refused[node.id] += 1
        self.core.put_back(node, engine_gone=True)

    def lose(self, engine_id: str) -> None:
        """An engine dies: what it had is ready again, under a new attempt."""
        self.alive.discard(engine_id)
        lost = [node for node in self.running() if node.engine == engine_id]
        for node in lost:
            self.refused[node.id] += 1
            self.core.make_ready(node, node.rev + 1)
        self.core.update_engines({i: self.records[i] for i in sorted(self.alive)})
        self.core.forget_engine(engine_id)

    def heartbeat(self) -> None:
        if not self.alive:
            self.alive.add(self.random.choice(sorted(self.records)))
        self.core.update_engines({i: self.records[i] for i in sorted(self.alive)})

    def turn(self) -> None:
        """Something happens."""
        self.now_ms += STEP_MS
        placements = self.decide()
        running, event = self.running(), self.random.random()
        self.trouble -= event < 0.15
        if self.trouble > 0 and placements and event < 0.1:
            self.refuse(self.random.choice(placements).request)
        elif self.trouble > 0 and event < 0.15 and len(self.alive) > 1:
            self.lose(self.random.choice(sorted(self.alive)))
        elif event < 0.25:
            self.alive.add(self.random.choice(sorted(self.records)))
            self.heartbeat()
        elif running:
            self.finish(self.random.choice(running))
        else:
            self.heartbeat()


def fleet(slots: int) -> list[EngineRecord]:
    return [
        engine("a", model="A", slots=slots, num_blocks=64),
        engine("a2", model="A", slots=2 * slots, cost=CostModel(0.2, 15.0, 0.1, 0.01)),
        engine("b", model="B", slots=slots, num_blocks=40),
        engine("b2", model="B", slots=1),
    ]


requests = st.tuples(
    st.sampled_from(["", "A", "B"]),
    st.integers(1, 300),
    st.sampled_from(OBJECTIVES),
    st.sampled_from(["", "p", "q"]),
    st.sampled_from(["acme", "umbrella"]),
    st.lists(st.integers(0, 50), max_size=4),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(requests, min_size=1, max_size=40), st.integers(1, 4), st.integers(0, 10**9))
def test_every_ready_request_of_any_graph_is_dispatched_once(
    graph: list[tuple[str, int, Objective | None, str, str, list[int]]], slots: int, seed: int
) -> None:
    """Exactly once, unless the store refused it or its engine was lost, and then once more for each time."""
    service = Service(Random(seed), fleet(slots))
    core = service.core
    for n, (model, output, objective, prefix, tenant, inputs) in enumerate(graph):
        names = sorted({f"t{i % n}" for i in inputs}) if n else []
        node = add(core, f"t{n}", names, tenant=tenant, at_ms=n, model=model, sampling={"max_tokens": output})
        if prefix and not names:
            share(core, node, (prefix, 100))
        if objective is not None:
            core.want(f"0-v-t{n}", objective)
    for _ in range(100 * len(graph) + 1000):
        if not core.graph.requests:
            break
        service.turn()
    assert not core.graph.requests, "something is left"
    assert not len(core.ready)
    attempts = {f"0-r-t{n}": 1 + service.refused[f"0-r-t{n}"] for n in range(len(graph))}
    assert service.dispatched == Counter(attempts)
    assert all(load.num_outstanding == 0 for load in core.engines.values())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**9), st.sampled_from([LATENCY, None, THROUGHPUT]), st.integers(1, 4))
def test_a_large_request_starts_when_what_its_engine_ran_is_done(
    seed: int, objective: Objective | None, num_engines: int
) -> None:
    """Small ones never stop coming. What runs when the large one comes to the front is all that it waits for."""
    random = Random(seed)
    records = [engine(f"e{n}", slots=16, num_blocks=40) for n in range(num_engines)]
    service = Service(random, records)
    core, count = service.core, 0

    def small() -> None:
        nonlocal count
        count += 1
        add(core, f"s{count}", at_ms=count, sampling={"max_tokens": random.randint(20, 60)})

    for _ in range(60):
        small()
    service.decide()
    large = add(core, "large", at_ms=-30_000, sampling={"max_tokens": 600})
    if objective is not None:
        core.want("0-v-large", objective)
    at_front = large.key_ms
    waits_for: set[str] | None = None
    for _ in range(2000):
        service.now_ms += STEP_MS
        placements = service.decide()
        if large.engine:
            return
        if waits_for is None and large.kept_engine:
            waits_for = set(core.engines[large.kept_engine].outstanding)
        if waits_for is not None:
            for placement in placements:
                behind = placement.request.key_ms > at_front
                assert not (behind and placement.engine.id == large.kept_engine), "it is kept for the large one"
            if not waits_for & set(core.graph.requests):
                raise AssertionError("what it waited for is done")
        service.finish(random.choice(service.running()))
        while len(core.ready) < 20:
            small()
    raise AssertionError("it starves")


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**9))
def test_throughput_work_is_not_starved_by_what_comes_after_it(seed: int) -> None:
    """However much of it there is: urgent work that is submitted MAX_SHIFT_MS later does not come before it."""
    random = Random(seed)
    service = Service(random, [engine("e0", slots=2)])
    core = service.core
    old = [add(core, f"old{n}", at_ms=n, priority=-100, sampling={"max_tokens": 20}) for n in range(5)]
    for node in old:
        core.want(node.output.id, THROUGHPUT)
    late = [add(core, f"late{n}", at_ms=round(MAX_SHIFT_MS) + 10 + n, priority=100) for n in range(20)]
    for node in late:
        core.want(node.output.id, LATENCY)
    order: list[str] = []
    while core.graph.requests:
        service.now_ms += 1000.0
        order += [p.request.id for p in service.decide()]
        if running := service.running():
            service.finish(random.choice(running))
    assert set(order[: len(old)]) == {node.id for node in old}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 3), st.integers(1, 6))
def test_tenants_that_wait_all_the_time_are_served_the_same_tokens(seed: int, num_engines: int, group: int) -> None:
    """They differ by no more than the largest part that is served at once, here a task group of one of them."""
    random = Random(seed)
    service = Service(random, [engine(f"e{n}", slots=4) for n in range(num_engines)])
    core, count = service.core, 0
    served: Counter[str] = Counter({"grouped": 0, "modest": 0, "greedy": 0})
    largest = 0

    def refill() -> None:
        nonlocal count
        waiting = Counter(node.tenant for node in core.ready)
        for tenant, tokens in (("grouped", 40), ("modest", 15), ("greedy", 200)):
            for _ in range(12 - waiting[tenant]):
                count += 1
                size = random.randint(tokens // 2, tokens)
                node = add(core, f"x{count}", tenant=tenant, sampling={"max_tokens": size, "ignore_eos": True})
                core.want(f"0-v-x{count}", LATENCY)
                if tenant == "grouped" and count % 2:
                    others = [n for n in core.ready if n.tenant == tenant and n.group is None][:group]
                    count += 1
                    add(core, f"r{count}", [n.id.removeprefix("0-r-") for n in others], tenant="nobody")
                    core.want(f"0-v-r{count}", LATENCY)
                assert node.output_tokens == size

    for _ in range(60):
        refill()
        parts: Counter[object] = Counter()
        for placement in service.decide():
            node = placement.request
            served[node.tenant] += node.prompt_tokens + node.output_tokens
            part = node.group if placement.reason is Reason.GROUP else node
            parts[part] += node.prompt_tokens + node.output_tokens
        largest = max(largest, *parts.values(), 0) if parts else largest
        assert max(served.values()) - min(served.values()) <= largest
        for node in random.sample(service.running(), min(2, len(service.running()))):
            service.finish(node)
            for waiting in [n for n in core.graph.requests.values() if n.tenant == "nobody" and n in core.ready]:
                core.finish(waiting)
    assert min(served.values()) > 0
