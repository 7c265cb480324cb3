"""What the reference's scheduler was seen to do wrong, done right; and what goes beyond it."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest

from parrot_mq.messages import LATENCY, THROUGHPUT, CostModel, EngineRecord, Objective
from parrot_mq.scheduler.core import Core
from parrot_mq.scheduler.nodes import RequestNode
from parrot_mq.scheduler.policy import Placement, Reason
from parrot_mq.scheduler.policy.pacing import SHARE
from tests.scheduler.support import QUICK, add, core_with, engine, placed, share

A100 = CostModel(0.1, 20.0, 0.2, 0.003)
"""Like a 13B model on such a GPU."""


def a100(name: str, resident: tuple[str, ...] = ()) -> EngineRecord:
    return engine(name, slots=64, cost=A100, num_blocks=4000, resident=resident)


def ask(core: Core, name: str, objective: Objective | None, *prefix: tuple[str, int], output: int = 100) -> RequestNode:
    node = add(core, name, sampling={"max_tokens": output, "ignore_eos": True})
    if objective is not None:
        core.want(f"0-v-{name}", objective)
    if prefix:
        share(core, node, *prefix)
    return node


def finish(core: Core, name: str) -> None:
    core.finish(core.graph.requests[f"0-r-{name}"])


def test_twenty_throughput_tasks_are_spread_by_predicted_completion_not_packed() -> None:
    slow = CostModel(0.1, 10.0, 0.5)
    core = core_with(*(engine(f"e{n}", slots=32) for n in range(3)), engine("slow", slots=32, cost=slow))
    for n in range(20):
        ask(core, f"t{n}", THROUGHPUT, (f"own {n}", 400))
    counts = Counter(placed(core).values())
    like = [counts[f"e{n}"] for n in range(3)]
    assert max(like) - min(like) <= 1
    assert 0 < counts["slow"] < min(like), "each has a part, the slower a smaller one"


def test_latency_tasks_are_not_stuck_behind_throughput_tasks() -> None:
    core = core_with(*(engine(f"e{n}", slots=4) for n in range(2)))
    for n in range(40):
        ask(core, f"t{n}", THROUGHPUT)
    running = placed(core)
    ask(core, "chat", LATENCY)
    assert "chat" not in running
    finish(core, next(iter(running)))
    assert next(iter(placed(core))) == "chat", "the first slot that comes free is its own, before 30 that came earlier"


def test_latency_tasks_are_placed_away_from_throughput_tasks() -> None:
    core = core_with(a100("e0"), a100("e1"))
    for n in range(30):
        ask(core, f"t{n}", THROUGHPUT)
    loads = Counter(placed(core).values())
    for n in range(30):
        if core.graph.requests[f"0-r-t{n}"].engine == "e1":
            finish(core, f"t{n}")
    ask(core, "chat", LATENCY)
    assert loads == {"e0": 15, "e1": 15}
    assert placed(core) == {"chat": "e1"}


def test_sixteen_maps_are_a_group() -> None:
    core = core_with(*(engine(f"e{n}", slots=16) for n in range(4)))
    names = [f"m{n}" for n in range(16)]
    maps = [add(core, name) for name in names]
    add(core, "reduce", names)
    core.want("0-v-reduce", LATENCY)
    plan = core.decide(0.0)
    assert len({p.engine.id for p in plan.placements}) == 1
    assert {p.reason for p in plan.placements} == {Reason.GROUP}
    assert {node.group.size for node in maps if node.group} == {16}
    finish(core, "m0")
    assert {node.group.size for node in maps if node.group} == {15}


def test_a_group_of_long_prompts_is_split_where_that_halves_its_time() -> None:
    core = core_with(*(a100(f"e{n}") for n in range(4)))
    names = [f"m{n}" for n in range(16)]
    for name in names:
        share(core, ask(core, name, None, output=10), (f"own {name}", 4000))
    add(core, "reduce", names)
    core.want("0-v-reduce", LATENCY)
    assert Counter(placed(core).values()) == {"e0": 4, "e1": 4, "e2": 4, "e3": 4}


def test_a_group_that_shares_a_long_prefix_is_not_split() -> None:
    cost = dataclasses.replace(A100, shared_saving=1.0)
    core = core_with(*(dataclasses.replace(a100(f"e{n}"), cost=cost) for n in range(4)))
    names = [f"m{n}" for n in range(16)]
    for name in names:
        share(core, ask(core, name, None, output=10), ("common", 4000))
    add(core, "reduce", names)
    core.want("0-v-reduce", LATENCY)
    assert len(set(placed(core).values())) == 1


def test_a_group_larger_than_all_engines_is_done_early_on_each() -> None:
    """A faster engine gets more of it."""
    core = core_with(engine("slow", slots=8, cost=CostModel(0.1, 5.0, 5.0)), engine("fast", slots=8))
    names = [f"m{n}" for n in range(12)]
    for name in names:
        add(core, name, sampling={"max_tokens": 50})
    add(core, "reduce", names)
    core.want("0-v-reduce", LATENCY)
    assert Counter(placed(core).values()) == {"fast": 8, "slow": 4}


def test_sixteen_tasks_of_four_prefixes_colocate_and_stay_balanced() -> None:
    core = core_with(*(a100(f"e{n}") for n in range(4)))
    for n in range(16):
        ask(core, f"{'abcd'[n % 4]}{n}", THROUGHPUT, (f"system {n % 4}", 3000))
    homes: dict[str, set[str]] = {}
    engines = placed(core)
    for name, engine_id in engines.items():
        homes.setdefault(name[0], set()).add(engine_id)
    assert all(len(home) == 1 for home in homes.values())
    assert Counter(engines.values()) == {"e0": 4, "e1": 4, "e2": 4, "e3": 4}


def test_a_request_of_overlapping_groups_is_scheduled_once() -> None:
    core = core_with(*(engine(f"e{n}", slots=16) for n in range(2)))
    nodes = [add(core, f"m{n}") for n in range(8)]
    add(core, "left", [f"m{n}" for n in range(5)])
    add(core, "right", [f"m{n}" for n in range(3, 8)])
    add(core, "all", [f"m{n}" for n in range(8)])
    for name in ("left", "right", "all"):
        core.want(f"0-v-{name}", LATENCY)
    (group,) = {node.group for node in nodes}
    assert group is not None
    assert group.size == 8, "who is parallel to a member joins its group"
    plan = core.decide(0.0)
    assert Counter(p.request.id for p in plan.placements) == Counter(node.id for node in nodes)
    assert not core.decide(0.0).placements


def test_nested_groups_are_groups_of_their_own() -> None:
    core = core_with(engine("e0", slots=32))
    for part in "ab":
        for n in range(3):
            add(core, f"{part}{n}")
        add(core, f"sum-{part}", [f"{part}{n}" for n in range(3)])
    add(core, "end", ["sum-a", "sum-b"])
    core.want("0-v-end", LATENCY)
    ids = {name: node.group.id for name, node in core.graph.requests.items() if node.group is not None}
    assert {ids[f"0-r-a{n}"] for n in range(3)} == {"0-r-sum-a"}
    assert {ids[f"0-r-b{n}"] for n in range(3)} == {"0-r-sum-b"}
    assert ids["0-r-sum-a"] == ids["0-r-sum-b"] == "0-r-end"


def hot(load: int, prefix_tokens: int) -> Placement:
    """Place a sharer of a prefix that is on an engine which runs ``load`` requests, beside an idle engine."""
    core = core_with(a100("busy", resident=("hot",)), a100("idle"))
    for n in range(load):
        core.engines["busy"].charge(ask(core, f"load{n}", THROUGHPUT, output=200), -1e6)
        core.ready.discard(core.graph.requests[f"0-r-load{n}"])
    ask(core, "x", LATENCY, ("hot", prefix_tokens), output=100)
    (placement,) = core.decide(0.0).placements
    return placement


@pytest.mark.parametrize("load", [0, 5, 15, 25, 35, 60])
@pytest.mark.parametrize("prefix_tokens", [100, 1000, 5000])
def test_a_hot_prefix_is_computed_again_exactly_when_that_is_faster(load: int, prefix_tokens: int) -> None:
    placement = hot(load, prefix_tokens)
    ((_, other_ms),) = placement.considered
    assert placement.predicted_ms <= other_ms
    # By hand: on the idle engine the prefix costs its prefill; on the busy one each step takes longer for its load.
    computed_ms = A100.prefill_ms(prefix_tokens)
    waited_ms = 100 * load * (A100.decode_per_seq_ms + A100.decode_per_context_token_ms * 100)
    assert placement.engine.id == ("idle" if computed_ms < waited_ms else "busy")


def test_a_hot_prefix_does_not_pile_up_on_one_engine() -> None:
    core = core_with(*(engine(f"e{n}", slots=64, cost=CostModel(0.1, 5.0, 0.5)) for n in range(4)))
    for n in range(64):
        ask(core, f"x{n}", LATENCY, ("hot", 1000), output=300)
    counts = Counter(placed(core).values())
    assert len(counts) == 4
    assert max(counts.values()) <= 2 * min(counts.values())


def test_a_planned_engine_counts_as_holding_the_prefix() -> None:
    core = core_with(a100("e0"), a100("e1"))
    node = ask(core, "x", LATENCY, ("system", 2000), ("whole", 2050))
    node.planned_engine, node.planned_tokens = "e1", 2000
    (placement,) = core.decide(0.0).placements
    assert (placement.engine.id, placement.reason) == ("e1", Reason.RESIDENT)


def test_throughput_work_beside_urgent_requests_is_paced_and_goes_on() -> None:
    """On the only engine a chat runs: maps come in at the stated share of its time, and never stop."""
    core = core_with(a100("e0"))
    ask(core, "chat", LATENCY, output=400)
    placed(core)
    alone_ms = 400 * A100.decode_step_ms(1, 200)
    for n in range(200):
        ask(core, f"m{n}", THROUGHPUT, (f"own {n}", 1016), output=50)
    delay_ms, started, last_ms, longest_ms = 0.0, 0, 0.0, 0.0
    step_ms = A100.decode_step_ms(2, 200 + 1024 + 25) - A100.decode_step_ms(1, 200)
    its_ms = A100.prefill_ms(1024) + 50 * step_ms
    for now_ms in range(0, 60_000, 10):
        for name in placed(core, float(now_ms)):
            longest_ms, last_ms = max(longest_ms, now_ms - last_ms), float(now_ms)
            delay_ms += its_ms
            started += 1
            finish(core, name)
        assert delay_ms <= SHARE * (alone_ms + now_ms) + its_ms
    assert started >= SHARE * 60_000 / its_ms
    assert longest_ms <= its_ms / SHARE + 10


def test_a_chat_passes_throughput_work_that_is_held_off() -> None:
    core = core_with(a100("e0"))
    ask(core, "chat0", LATENCY, output=50)
    placed(core)
    for n in range(50):
        ask(core, f"m{n}", THROUGHPUT, (f"own {n}", 8000), output=50)
    assert len(placed(core)) < 50
    ask(core, "chat1", LATENCY)
    assert placed(core) == {"chat1": "e0"}
    finish(core, "chat0")
    finish(core, "chat1")
    assert placed(core), "nobody is disturbed any more"


def test_throughput_work_goes_first_where_nobody_is_disturbed() -> None:
    core = core_with(*(a100(f"e{n}") for n in range(4)))
    for n in range(2):
        ask(core, f"chat{n}", LATENCY, output=200)
    chats = set(placed(core).values())
    for n in range(40):
        ask(core, f"m{n}", THROUGHPUT, (f"own {n}", 1000), output=50)
    counts = Counter(placed(core).values())
    assert sum(counts[e] for e in counts if e not in chats) >= 36


def test_what_is_not_on_the_critical_path_waits_for_what_is() -> None:
    core = core_with()
    side = add(core, "side", sampling={"max_tokens": 10})
    first = add(core, "first", sampling={"max_tokens": 500})
    second = add(core, "second", ["first"], sampling={"max_tokens": 500})
    end = add(core, "end", ["second", "side"], sampling={"max_tokens": 10})
    core.want("0-v-end", LATENCY)
    its_ms = core.duration_ms
    assert (first.slack_ms, second.slack_ms, end.slack_ms) == (0.0, 0.0, 0.0)
    assert side.slack_ms == its_ms(first) + its_ms(second) - its_ms(side)
    assert first.remaining_ms == its_ms(second) + its_ms(end)
    assert [end.remaining_ms, side.remaining_ms] == [0.0, its_ms(end)]
    core.update_engines({"e0": engine("e0", slots=1)})
    assert next(iter(placed(core))) == "first"


def test_a_path_that_turns_out_longer_is_told_to_what_is_before_it() -> None:
    core = core_with()
    nodes = [add(core, "n0")] + [add(core, f"n{n}", [f"n{n - 1}"]) for n in range(1, 5)]
    core.want("0-v-n1", LATENCY)
    assert nodes[0].remaining_ms == core.duration_ms(nodes[1])
    core.want("0-v-n4", LATENCY)
    assert nodes[0].remaining_ms == sum(core.duration_ms(node) for node in nodes[1:])


@pytest.mark.parametrize("switch", ["deduce_objectives", "task_groups", "prefix_affinity"])
def test_each_part_can_be_switched_off(switch: str) -> None:
    switched = dataclasses.replace(
        QUICK,
        deduce_objectives=switch != "deduce_objectives",
        task_groups=switch != "task_groups",
        prefix_affinity=switch != "prefix_affinity",
    )
    core = core_with(a100("e0"), a100("e1"), settings=switched)
    maps = [ask(core, f"m{n}", None) for n in range(4)]
    add(core, "reduce", [f"m{n}" for n in range(4)])
    core.want("0-v-reduce", LATENCY)
    for node in maps:
        share(core, node, ("system", 2000))
    reasons = {p.reason for p in core.decide(0.0).placements}
    if switch == "deduce_objectives":
        assert [node.objective for node in maps] == [None] * 4
        assert core.graph.requests["0-r-reduce"].objective == LATENCY
    if switch != "prefix_affinity":
        assert [node.group for node in maps] == [None] * 4
        assert reasons <= {Reason.COMPLETION, Reason.SHARERS, Reason.RESIDENT}
    else:
        assert reasons == {Reason.GROUP}
        assert core.engines["e0"].cached_tokens(maps[0], 0.0) == core.engines["e1"].cached_tokens(maps[0], 0.0) == 0
