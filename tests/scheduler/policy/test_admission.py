from __future__ import annotations

import dataclasses

import pytest

from parrot_mq.messages import LATENCY, TPOT, TTFT, CostModel, EngineState, Objective, ObjectiveKind
from tests.scheduler.support import add, core_with, engine, placed


def test_an_engine_that_would_break_its_own_promise_is_still_used_when_empty() -> None:
    core = core_with(engine("e0", cost=CostModel(1.0, 100.0, 1.0)))
    for n in range(2):
        add(core, f"c{n}")
        core.want(f"0-v-c{n}", Objective(ObjectiveKind.TPOT, value_ms=10))
    assert placed(core) == {"c0": "e0"}


def test_tpot_without_a_bound_promises_nothing() -> None:
    core = core_with(engine("e0", slots=4))
    for n in range(4):
        add(core, f"c{n}")
        core.want(f"0-v-c{n}", TPOT)
    assert len(placed(core)) == 4


def test_kv_memory_bounds_what_is_dispatched() -> None:
    core = core_with(engine("e0", slots=32, num_blocks=16, block_size=16))
    for n in range(8):
        add(core, f"c{n}", sampling={"max_tokens": 100})
    assert list(placed(core)) == ["c0", "c1"]


def test_one_that_does_not_fit_is_not_passed_by_small_ones() -> None:
    core = core_with(engine("e0", slots=32, num_blocks=16, block_size=16))
    add(core, "first", sampling={"max_tokens": 200})
    add(core, "large", sampling={"max_tokens": 200})
    add(core, "small", sampling={"max_tokens": 2})
    assert placed(core) == {"first": "e0"}
    core.finish(core.graph.requests["0-r-first"])
    assert list(placed(core)) == ["large", "small"]


def test_only_what_should_start_soon_is_dispatched() -> None:
    core = core_with(engine("e0", slots=4))
    for n in range(100):
        add(core, f"t{n}", sampling={"max_tokens": 64})
    first = placed(core)
    assert 4 <= len(first) <= 5
    add(core, "urgent", at_ms=1050)
    core.want("0-v-urgent", LATENCY)
    for name in first:
        core.finish(core.graph.requests[f"0-r-{name}"])
    assert next(iter(placed(core))) == "urgent"


def test_an_engine_gets_only_requests_for_its_model() -> None:
    core = core_with(engine("e0", model="A"), engine("e1", model="B"))
    add(core, "a", model="A")
    add(core, "b", model="B")
    add(core, "c", model="C")
    assert placed(core) == {"a": "e0", "b": "e1"}
    assert len(core.ready) == 1


@pytest.mark.parametrize("state", [EngineState.STARTING, EngineState.DRAINING])
def test_an_engine_that_is_not_ready_gets_nothing(state: EngineState) -> None:
    core = core_with()
    core.update_engines({"e0": dataclasses.replace(engine("e0"), state=state)})
    add(core, "a")
    assert placed(core) == {}


@pytest.mark.parametrize("objective", [LATENCY, TTFT])
def test_who_is_asked_for_where_it_runs_is_harmed_by_what_comes_beside_it(objective: Objective) -> None:
    core = core_with(engine("e0", slots=8))
    add(core, "chat", sampling={"max_tokens": 500})
    assert placed(core) == {"chat": "e0"}
    other = add(core, "other", sampling={"max_tokens": 100})
    load = core.engines["e0"]
    before_ms = load.completion_ms(other, 0.0)
    core.want("0-v-chat", objective)
    assert load.completion_ms(other, 0.0) > before_ms


def test_what_nobody_has_asked_for_is_paced_beside_urgent_requests_until_somebody_does() -> None:
    core = core_with(engine("e0", slots=64))
    add(core, "chat", sampling={"max_tokens": 500})
    core.want("0-v-chat", LATENCY)
    assert placed(core) == {"chat": "e0"}
    for n in range(50):
        add(core, f"t{n}", sampling={"max_tokens": 500})
    assert len(placed(core)) < 50
    late = next(node for node in core.ready)
    core.want(late.output.id, LATENCY)
    assert late.id.removeprefix("0-r-") in placed(core)
