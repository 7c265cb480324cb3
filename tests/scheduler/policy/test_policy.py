from __future__ import annotations

import sys
from collections import Counter

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from parrot_mq.messages import LATENCY, THROUGHPUT, CostModel, Objective
from parrot_mq.scheduler.nodes import RequestNode
from parrot_mq.scheduler.policy import Reason, plan_json
from parrot_mq.scheduler.policy.policy import MAX_PLACEMENTS
from tests.scheduler.support import add, core_with, engine, placed, share


def test_throughput_tasks_spread_over_idle_engines() -> None:
    core = core_with(*(engine(f"e{n}", slots=32) for n in range(4)))
    for n in range(20):
        add(core, f"t{n}")
        core.want(f"0-v-t{n}", THROUGHPUT)
    assert Counter(placed(core).values()) == {"e0": 5, "e1": 5, "e2": 5, "e3": 5}


def test_throughput_tasks_with_a_short_common_prefix_spread_too() -> None:
    core = core_with(*(engine(f"e{n}", slots=32) for n in range(4)))
    for n in range(20):
        share(core, add(core, f"t{n}"), ("system", 40))
        core.want(f"0-v-t{n}", THROUGHPUT)
    counts = Counter(placed(core).values())
    assert len(counts) == 4
    assert max(counts.values()) <= 8


def test_a_task_group_goes_to_one_engine() -> None:
    core = core_with(*(engine(f"e{n}", slots=16) for n in range(4)))
    names = [f"m{n}" for n in range(16)]
    for name in names:
        add(core, name)
    add(core, "r", names)
    core.want("0-v-r", LATENCY)
    plan = core.decide(0.0)
    assert len({p.engine.id for p in plan.placements}) == 1
    assert [p.reason for p in plan.placements] == [Reason.GROUP] * 16


def test_a_task_group_goes_where_it_fits_whole() -> None:
    core = core_with(engine("small", slots=4, cost=CostModel(0.01, 0.5, 0.05)), engine("large", slots=16))
    names = [f"m{n}" for n in range(10)]
    for name in names:
        add(core, name)
    add(core, "r", names)
    core.want("0-v-r", LATENCY)
    assert Counter(placed(core).values()) == {"large": 10}


def test_a_task_group_is_split_where_capacity_does_not_allow_it() -> None:
    core = core_with(*(engine(f"e{n}", slots=4) for n in range(3)))
    names = [f"m{n}" for n in range(10)]
    for name in names:
        add(core, name)
    add(core, "r", names)
    core.want("0-v-r", LATENCY)
    assert sorted(Counter(placed(core).values()).values()) == [3, 3, 4]


def test_a_group_is_dispatched_ahead_though_an_engine_of_another_model_is_idle() -> None:
    core = core_with(engine("e0", model="A", slots=2), engine("e1", model="B", slots=2))
    names = [f"m{n}" for n in range(6)]
    for name in names:
        add(core, name, model="A")
    add(core, "r", names)
    core.want("0-v-r", LATENCY)
    assert Counter(placed(core).values()) == {"e0": 3}


def test_a_group_without_an_engine_holds_nothing_else_back() -> None:
    core = core_with(engine("e0", model="A", slots=8, num_blocks=4, block_size=16), engine("e1", model="B"))
    add(core, "first", model="A", sampling={"max_tokens": 60})
    placed(core)
    for name in ("m0", "m1"):
        add(core, name, model="A", sampling={"max_tokens": 60})
    add(core, "r", ["m0", "m1"])
    core.want("0-v-r", LATENCY)
    add(core, "b", model="B", at_ms=5000)
    assert placed(core) == {"b": "e1"}
    core.finish(core.graph.requests["0-r-first"])
    assert placed(core) == {"m0": "e0"}


def test_a_member_that_comes_later_follows_its_group() -> None:
    core = core_with(engine("e0"), engine("e1"))
    nodes = [add(core, "m0"), add(core, "m1")]
    add(core, "r", ["m0", "m1"])
    core.want("0-v-r", LATENCY)
    core.ready.discard(nodes[1])
    (home,) = placed(core).values()
    for n in range(3):  # the other engine is idle, and would be done with it sooner
        core.engines[home].charge(add(core, f"load{n}"), 0.0)
        core.ready.discard(core.graph.requests[f"0-r-load{n}"])
    core.ready.put(nodes[1])
    assert placed(core) == {"m1": home}


def test_queued_sharers_of_a_prefix_go_together() -> None:
    core = core_with(engine("e0"), engine("e1"))
    for n in range(8):
        share(core, add(core, f"{'ab'[n % 2]}{n}"), (f"system {'ab'[n % 2]}", 2000))
    plan = core.decide(0.0)
    homes = {p.request.id[4]: p.engine.id for p in plan.placements}
    assert {p.request.id: p.engine.id for p in plan.placements} == {
        p.request.id: homes[p.request.id[4]] for p in plan.placements
    }
    assert homes["a"] != homes["b"]
    assert Counter(p.reason for p in plan.placements)[Reason.SHARERS] == 6


def test_a_resident_prefix_attracts() -> None:
    core = core_with(engine("e0"), engine("e1", resident=("system",)))
    share(core, add(core, "x"), ("system", 1000), ("query", 1010))
    plan = core.decide(0.0)
    assert [(p.engine.id, p.reason) for p in plan.placements] == [("e1", Reason.RESIDENT)]


def test_a_resident_prefix_loses_to_a_load_that_outweighs_it() -> None:
    core = core_with(engine("e0", slots=64), engine("e1", slots=64, resident=("system",)))
    for n in range(40):
        core.engines["e1"].charge(add(core, f"load{n}", sampling={"max_tokens": 1000}), 0.0)
        core.ready.discard(core.graph.requests[f"0-r-load{n}"])
    share(core, add(core, "x"), ("system", 100))
    plan = core.decide(0.0)
    assert [(p.engine.id, p.reason) for p in plan.placements] == [("e0", Reason.COMPLETION)]


def test_without_anything_shared_the_faster_engine_is_taken() -> None:
    core = core_with(engine("slow", cost=CostModel(1.0, 50.0, 1.0)), engine("swift", cost=CostModel(0.1, 5.0, 0.1)))
    add(core, "x")
    assert placed(core) == {"x": "swift"}


def test_throughput_stays_away_from_an_engine_with_latency_requests() -> None:
    core = core_with(engine("e0"), engine("e1"))
    for name in ("chat0", "chat1"):
        add(core, name)
        core.want(f"0-v-{name}", LATENCY)
    chats = placed(core)
    assert set(chats.values()) == {"e0", "e1"}
    core.finish(core.graph.requests["0-r-chat1"])
    for n in range(2):
        add(core, f"t{n}")
        core.want(f"0-v-t{n}", THROUGHPUT)
    assert set(placed(core).values()) == {chats["chat1"]}


def test_a_large_plan_comes_in_parts() -> None:
    core = core_with(engine("e0", slots=1000))
    for n in range(600):
        add(core, f"t{n}")
    sizes = []
    while True:
        plan = core.decide(0.0)
        sizes.append(len(plan.placements))
        if not plan.more:
            break
    assert sizes == [MAX_PLACEMENTS, MAX_PLACEMENTS, 600 - 2 * MAX_PLACEMENTS]


def test_a_decision_does_not_look_at_everything_that_waits() -> None:
    """A decision makes as many function calls with 100 times as many waiting."""

    def calls(waiting: int) -> int:
        core = core_with(engine("e0", slots=8), engine("e1", slots=8))
        for n in range(waiting):
            share(core, add(core, f"t{n}"), ("system", 500))
        placed(core)
        count = 0

        def on_event(_frame: object, _event: str, _arg: object) -> None:
            nonlocal count
            count += 1

        sys.setprofile(on_event)
        try:
            for n in range(5):
                core.finish(core.graph.requests[f"0-r-t{n}"])
                core.decide(0.0)
        finally:
            sys.setprofile(None)
        return count

    assert calls(20_000) < 1.2 * calls(200)


def test_the_hints_of_an_assignment_leave_defaults_out() -> None:
    core = core_with(engine("e0"))
    plain = add(core, "plain")
    assert orjson.loads(plan_json(plain)) == {"rank": round(plain.key_ms), "flight": ""}
    grouped = [add(core, "m0"), add(core, "m1")]
    add(core, "r", ["m0", "m1"])
    core.want("0-v-r", LATENCY)
    share(core, grouped[0], ("d1", 10), ("d2", 20))
    assert orjson.loads(plan_json(grouped[0], 2)) == {
        "flight": "",
        "rank": round(grouped[0].key_ms),
        "group": "0-r-r",
        "group_size": 2,
        "objective": "latency",
        "prefix": ["d1", "d2"],
    }


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["", "A", "B"]),
            st.integers(1, 300),
            st.sampled_from([None, LATENCY, THROUGHPUT]),
            st.sampled_from(["", "p", "q"]),
            st.integers(-2, 2),
        ),
        min_size=1,
        max_size=60,
    ),
    st.integers(1, 6),
    st.randoms(use_true_random=False),
)
def test_everything_is_placed_once_and_no_engine_is_overrun(
    arrivals: list[tuple[str, int, Objective | None, str, int]], slots: int, random: object
) -> None:
    """Whatever waits is placed as engines finish work, exactly once, on an engine of its model, within its room."""
    core = core_with(
        engine("a", model="A", slots=slots, num_blocks=64), engine("b", model="B", slots=slots), engine("b2", model="B")
    )
    for n, (model, max_tokens, objective, prefix, priority) in enumerate(arrivals):
        node = add(core, f"t{n}", model=model, priority=priority, at_ms=n, sampling={"max_tokens": max_tokens})
        if objective:
            core.want(f"0-v-t{n}", objective)
        if prefix:
            share(core, node, (prefix, 100))
    seen: Counter[str] = Counter()
    running: list[RequestNode] = []
    while len(core.ready) or running:
        plan = core.decide(0.0)
        for placement in plan.placements:
            seen[placement.request.id] += 1
            assert placement.request.model in ("", placement.engine.model)
            running.append(placement.request)
        for load in core.engines.values():
            assert load.record is not None
            assert load.num_outstanding <= 2 * load.record.max_num_seqs
        assert running, "nothing runs, but something waits"
        running.sort(key=lambda node: node.id)
        random.shuffle(running)  # type: ignore[attr-defined]
        core.finish(running.pop())
    assert seen == Counter({f"0-r-t{n}": 1 for n in range(len(arrivals))})
