from __future__ import annotations

import pytest

from parrot_mq.messages import LATENCY, THROUGHPUT, TPOT, TTFT, Objective, ObjectiveKind
from parrot_mq.scheduler.core import Core
from parrot_mq.scheduler.nodes import RequestNode
from parrot_mq.scheduler.policy import deduce
from tests.scheduler.support import add, core_with


@pytest.fixture
def core() -> Core:
    return core_with()


def kinds(*nodes: RequestNode) -> list[ObjectiveKind | None]:
    return [node.objective.kind if node.objective else None for node in nodes]


def test_latency_goes_back_through_a_chain(core: Core) -> None:
    a, b, c = add(core, "a"), add(core, "b", ["a"]), add(core, "c", ["b"])
    core.want("0-v-c", LATENCY)
    assert kinds(a, b, c) == ["latency"] * 3
    assert [node.group for node in (a, b, c)] == [None] * 3


def test_what_lies_behind_the_variable_is_not_touched(core: Core) -> None:
    a, b, c = add(core, "a"), add(core, "b", ["a"]), add(core, "c", ["b"])
    core.want("0-v-b", LATENCY)
    assert kinds(a, b, c) == ["latency", "latency", None]


def test_maps_of_a_reduce_become_one_task_group(core: Core) -> None:
    maps = [add(core, f"m{n}") for n in range(16)]
    reduce = add(core, "r", [f"m{n}" for n in range(16)])
    final = add(core, "f", ["r"])
    core.want("0-v-f", LATENCY)
    groups = {node.group for node in maps}
    assert len(groups) == 1
    (group,) = groups
    assert group is not None
    assert group.id == reduce.id
    assert group.size == 16
    assert reduce.group is None
    assert final.group is None
    assert kinds(*maps, reduce, final) == ["latency"] * 18


def test_stages_before_a_group_form_a_group_of_their_own(core: Core) -> None:
    firsts = [add(core, f"a{n}") for n in range(3)]
    seconds = [add(core, f"b{n}", [f"a{n}"]) for n in range(3)]
    add(core, "r", ["b0", "b1", "b2"])
    core.want("0-v-r", LATENCY)
    assert {node.group.id for node in seconds if node.group} == {"0-r-r"}
    assert {node.group.id for node in firsts if node.group} == {"0-r-r~1"}
    assert all(node.group for node in firsts)


def test_a_single_request_before_a_group_stays_alone(core: Core) -> None:
    architect = add(core, "architect")
    coders = [add(core, f"c{n}", ["architect"]) for n in range(4)]
    add(core, "review", [f"c{n}" for n in range(4)])
    core.want("0-v-review", LATENCY)
    assert len({node.group for node in coders}) == 1
    assert architect.group is None
    assert kinds(architect) == ["latency"]


def test_producers_that_depend_on_one_another_are_no_group(core: Core) -> None:
    code = add(core, "code")
    review = add(core, "review", ["code"])
    revise = add(core, "revise", ["code", "review"])
    core.want("0-v-revise", LATENCY)
    assert [code.group, review.group, revise.group] == [None, None, None]
    assert kinds(code, review, revise) == ["latency"] * 3


def test_throughput_goes_through_all_producers_without_groups(core: Core) -> None:
    firsts = [add(core, f"a{n}") for n in range(3)]
    seconds = [add(core, f"b{n}", [f"a{n}"]) for n in range(3)]
    reduce = add(core, "r", ["b0", "b1", "b2"])
    core.want("0-v-r", THROUGHPUT)
    assert kinds(*firsts, *seconds, reduce) == ["throughput"] * 7
    assert {node.group for node in (*firsts, *seconds)} == {None}


def test_a_stricter_objective_upgrades_and_a_laxer_one_does_not(core: Core) -> None:
    nodes = [add(core, "a"), add(core, "b", ["a"])]
    core.want("0-v-b", THROUGHPUT)
    core.want("0-v-b", LATENCY)
    assert kinds(*nodes) == ["latency", "latency"]
    core.want("0-v-b", THROUGHPUT)
    assert kinds(*nodes) == ["latency", "latency"]


def test_an_upgrade_makes_groups(core: Core) -> None:
    maps = [add(core, "a"), add(core, "b")]
    add(core, "r", ["a", "b"])
    core.want("0-v-r", THROUGHPUT)
    core.want("0-v-r", LATENCY)
    assert maps[0].group is maps[1].group is not None


@pytest.mark.parametrize("objective", [TTFT, TPOT])
def test_streaming_objectives_hold_for_the_stream_and_latency_before_it(core: Core, objective: Objective) -> None:
    a, b = add(core, "a"), add(core, "b", ["a"])
    core.want("0-v-b", objective)
    assert kinds(a, b) == ["latency", objective.kind]


def test_a_deadline_moves_forward_by_the_steps_after_it(core: Core) -> None:
    nodes = [add(core, "a"), add(core, "b", ["a"], sampling={"max_tokens": 30})]
    core.want("0-v-b", Objective(ObjectiveKind.DEADLINE, at_ms=100_000))
    due = [node.objective.at_ms for node in nodes if node.objective]
    assert due == [100_000 - round(core.duration_ms(nodes[1])), 100_000]
    assert due[0] < due[1]


def test_only_what_becomes_stricter_is_visited_again(core: Core) -> None:
    nodes = [add(core, "n0")] + [add(core, f"n{n}", [f"n{n - 1}"]) for n in range(1, 50)]
    core.want("0-v-n30", LATENCY)
    visited: list[str] = []

    def duration_ms(node: RequestNode) -> float:
        visited.append(node.id)
        return 0.0

    deduce(nodes[49], LATENCY, duration_ms)
    assert visited == [f"0-r-n{n}" for n in range(49, 30, -1)]


def test_a_dense_graph_is_walked_once(core: Core) -> None:
    width, stages = 20, 6
    for stage in range(stages):
        inputs = [f"s{stage - 1}.{n}" for n in range(width)] if stage else []
        for n in range(width):
            add(core, f"s{stage}.{n}", inputs)
    add(core, "end", [f"s{stages - 1}.{n}" for n in range(width)])
    core.want("0-v-end", Objective(ObjectiveKind.DEADLINE, at_ms=10**9))
    assert all(node.objective is not None for node in core.graph.requests.values())
    per_stage = {(node.depth, node.group) for node in core.graph.requests.values() if node.group}
    assert len(per_stage) == stages  # one group a stage


def test_a_producer_that_comes_after_its_consumer_inherits(core: Core) -> None:
    consumer = add(core, "b", ["a"])
    core.want("0-v-b", LATENCY)
    producer = add(core, "a")
    assert kinds(consumer, producer) == ["latency", "latency"]


def test_an_objective_for_an_unknown_variable_is_nothing(core: Core) -> None:
    core.want("0-v-nobody", LATENCY)
    assert core.graph.variables == {}
