"""Urgent requests keep together where throughput work has use for engines of its own, and nowhere else."""

from __future__ import annotations

import dataclasses
from collections import Counter
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from parrot_mq.messages import LATENCY, THROUGHPUT, CostModel, EngineRecord, EngineState, Objective
from parrot_mq.scheduler.core import Core
from parrot_mq.scheduler.policy import Reason
from parrot_mq.scheduler.policy.company import NUM_COMPANIES
from parrot_mq.scheduler.policy.pacing import LEAST_SHARE, SHARE, TOLERANCE, Pacing
from tests.scheduler.support import add, core_with, engine, placed, share

A6000 = CostModel(0.15, 27.5, 0.24, 0.0007, overlap=0.9)
"""Like a 7B model on such a GPU."""


def a6000(name: str) -> EngineRecord:
    return engine(name, slots=128, cost=A6000, num_blocks=3400)


def ask(core: Core, name: str, objective: Objective | None, *, prompt: int = 200, output: int = 300) -> None:
    node = add(core, name, sampling={"max_tokens": output, "ignore_eos": True})
    share(core, node, (f"own {name}", prompt))
    if objective is not None:
        core.want(f"0-v-{name}", objective)


def maps(core: Core, count: int, *, prefix: str = "m") -> None:
    for n in range(count):
        ask(core, f"{prefix}{n}", THROUGHPUT, prompt=1000, output=50)


def finish(core: Core, *names: str) -> None:
    for name in names:
        core.finish(core.graph.requests[f"0-r-{name}"])


def chat(core: Core, name: str, now_ms: float = 0.0) -> str:
    """Ask for one more; return its engine."""
    ask(core, name, LATENCY)
    return placed(core, now_ms)[name]


def test_alone_they_are_spread() -> None:
    core = core_with(*(a6000(f"e{n}") for n in range(4)))
    assert Counter(chat(core, f"chat{n}") for n in range(12)) == {f"e{n}": 3 for n in range(4)}


def test_beside_throughput_work_they_keep_together_as_far_as_they_hardly_notice() -> None:
    core = core_with(*(a6000(f"e{n}") for n in range(4)))
    home = chat(core, "chat0")
    maps(core, 120)
    placed(core)
    engines = [home]
    for n in range(1, 9):
        ask(core, f"chat{n}", LATENCY)
        (placement,) = core.decide(0.0).placements
        engines.append(placement.engine.id)
        if placement.reason is Reason.COMPANY:
            assert placement.engine.outlook.slowdown() <= TOLERANCE
    assert engines[:4] == [home] * 4, "the first few stay together"
    assert core.engines[home].outlook.slowdown() <= TOLERANCE or len(set(engines)) == 1
    assert len(set(engines)) <= 2, "throughput work keeps engines of its own"


def test_throughput_work_wants_no_more_engines_than_it_keeps_busy() -> None:
    """A little of it beside many engines: chats have the others, and need not be together."""
    core = core_with(*(a6000(f"e{n}") for n in range(4)))
    maps(core, 1)
    taken = set(placed(core).values())
    chats = Counter(chat(core, f"chat{n}") for n in range(6))
    assert len(chats) == 3
    assert not taken & set(chats)


def test_what_nobody_has_asked_for_wants_no_engines() -> None:
    core = core_with(*(a6000(f"e{n}") for n in range(4)))
    for n in range(12):
        ask(core, f"unasked{n}", None)
        placed(core)
        core.want(f"0-v-unasked{n}", LATENCY)
    assert Counter(load.num_urgent for load in core.engines.values()) == {3: 4}


def test_a_pause_of_throughput_work_is_waited_out_and_its_end_is_noticed() -> None:
    core = core_with(*(a6000(f"e{n}") for n in range(4)))
    home = chat(core, "chat0")
    maps(core, 120)
    finish(core, *(name for name in placed(core) if name.startswith("m")))
    while left := [name for name in placed(core, 1.0) if name.startswith("m")]:
        finish(core, *left)
    assert [chat(core, f"soon{n}", 1000.0) for n in range(3)] == [home] * 3
    late = [chat(core, f"late{n}", 200_000.0) for n in range(3)]
    assert len(set(late)) == 3
    assert home not in late


def test_throughput_work_that_is_held_off_gets_engines_back() -> None:
    """Chats came to all engines in a pause of it. As they end, new ones leave engines to it."""
    core = core_with(*(a6000(f"e{n}") for n in range(4)))
    old = [f"old{n}" for n in range(8)]
    for name in old:
        chat(core, name)
    maps(core, 800)
    now_ms, done = 0.0, 0
    running = [*old]
    for n in range(10):
        now_ms += 1000.0
        finish(core, running.pop(0))
        ask(core, f"new{n}", LATENCY)
        started = placed(core, now_ms)
        running.append(f"new{n}")
        ended = [name for name in started if name.startswith("m")]
        finish(core, *ended)
        done += len(ended)
    assert len(core.ready) > 0, "there is more of it"
    assert sorted(load.num_urgent for load in core.engines.values()) == [0, 0, 2, 6]
    assert done > 200


def test_a_crowded_engine_takes_less_throughput_work_and_always_some() -> None:
    def takes_ms(slowdown: float) -> float:
        pacing = Pacing()
        pacing.add(10.0, 0.0, slowdown)
        return pacing.opens_ms(0.0)

    assert takes_ms(0.0) == 10.0 / SHARE
    assert takes_ms(TOLERANCE / 2) == 2 * takes_ms(0.0)
    assert takes_ms(TOLERANCE) == takes_ms(9 * TOLERANCE) == 10.0 / LEAST_SHARE


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**9))
def test_companies_are_those_that_the_engines_make(seed: int) -> None:
    """Whatever came, went, left and was asked for: as if it were computed from all engines each time."""
    random = Random(seed)
    records = {f"e{n}": a6000(f"e{n}") for n in range(5)}
    core = core_with(*records.values())
    running: list[str] = []
    for n in range(60):
        act = random.random()
        if act < 0.6:
            ask(core, f"r{n}", random.choice([LATENCY, THROUGHPUT, None]), prompt=random.choice([10, 400, 3000]))
            running += placed(core, float(n))
        elif running and act < 0.75:
            finish(core, running.pop(random.randrange(len(running))))
        elif running and act < 0.85:
            core.want(f"0-v-{random.choice(running)}", random.choice([LATENCY, THROUGHPUT]))
        elif act < 0.95:
            name = random.choice(list(records))
            records[name] = dataclasses.replace(records[name], state=random.choice(list(EngineState)))
            core.update_engines(dict(records))
        elif len(records) > 1:  # with all that runs there
            name = random.choice(list(records))
            del records[name]
            core.forget_engine(name)
        core.engines.open_models(float(n))
        core.engines.company.held("", float(n))
        loads = [load for load in core.engines.values() if load.num_urgent]
        able = [load for load in loads if load.outlook.room and load.outlook.slowdown(1) <= TOLERANCE]
        able.sort(key=lambda load: (-load.outlook.slowdown(), load.id))
        core.engines.company.stays(1000.0)
        found = core.engines.company.companies("", float(n), ())
        assert found == [load.id for load in able[:NUM_COMPANIES]]
