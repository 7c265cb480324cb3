"""Hints on their way from a graph in the store to the engines, and what happens to them when somebody dies."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from parrot_mq.messages import CostModel, PrefixHint, VariableState
from parrot_mq.scheduler import Scheduler
from parrot_mq.store import Store
from tests.scheduler.conftest import Start
from tests.scheduler.support import QUICK, App, StubEngine, until

Engines = Callable[..., Awaitable[StubEngine]]
BIG = {"num_blocks": 1000, "num_free_blocks": 1000, "cost": CostModel(0.1, 0.5, 0.05)}
LONG = "a text that is long enough to be worth a message " * 20
OFF = dataclasses.replace(QUICK, eager_prefill=False, streamed_prefill=False, retain_prefixes=False)
EAGER = dataclasses.replace(QUICK, streamed_prefill=False)


def told(engine: StubEngine, kind: str) -> list[str]:
    """Return the keys that hints of a kind named."""
    return [text if kind == "release" else PrefixHint.from_json(text).key for k, text in engine.hints if k == kind]


async def submit_chain(app: App, length: int = 2) -> tuple[str, str]:
    """Submit requests that read a long text and the output of the one before; returns the end and its value."""
    end = app.call([app.value("start")])
    for _ in range(length - 1):
        end = app.call([app.value(LONG), end])
    await app.submit()
    return end, f"{LONG}+" * (length - 1) + "start"


async def test_the_known_prefix_of_a_waiting_request_is_hinted_and_released(
    shell_store: Store, app: App, engines: Engines, running: Start
) -> None:
    engine = await engines("e0", **BIG)
    engine.gate.clear()
    running(Scheduler(shell_store, EAGER))
    end, expected = await submit_chain(app)
    await until(lambda: engine.hints)
    [(kind, text)] = engine.hints
    hint = PrefixHint.from_json(text)
    assert (kind, hint.tenant, hint.end, [*hint.bindings], hint.follow) == ("prefill", "acme", 2, ["i0"], "")
    engine.gate.set()
    assert (await app.get(end)).value == expected
    await until(lambda: told(engine, "release"))
    assert [kind for kind, _ in engine.hints] == ["prefill", "release"]
    assert told(engine, "release") == [hint.key]


async def test_an_input_that_is_generated_is_followed(
    shell_store: Store, app: App, engines: Engines, running: Start
) -> None:
    engine = await engines("e0", **BIG)
    engine.gate.clear()
    running(Scheduler(shell_store, QUICK))
    end, expected = await submit_chain(app)
    await until(lambda: told(engine, "prefill"))
    [text] = [text for kind, text in engine.hints if kind == "prefill"]
    producer = PrefixHint.from_json(text).follow
    engine.gate.set()
    assert (await app.get(end)).value == expected
    assert (await app.get(producer)).value == "start"


@pytest.mark.parametrize("shell_store", [pytest.param("redis", marks=pytest.mark.redis)], indirect=True)
async def test_an_engine_that_dies_with_hints_out_harms_nothing(
    shell_store: Store, app: App, engines: Engines, running: Start
) -> None:
    stubs = [await engines(f"e{n}", **BIG) for n in range(2)]
    for stub in stubs:
        stub.gate.clear()
    scheduler = Scheduler(shell_store, QUICK)
    running(scheduler)
    ends = [await submit_chain(app, 3) for _ in range(4)]
    await until(lambda: any(stub.hints for stub in stubs))
    victim = next(stub for stub in stubs if stub.hints)
    (other,) = (stub for stub in stubs if stub is not victim)
    await victim.kill()
    await until(lambda: set(told(victim, "prefill")) <= set(told(other, "prefill")))
    other.gate.set()
    for end, expected in ends:
        record = await app.get(end)
        assert (record.state, record.value) == (VariableState.READY, expected)
    assert scheduler.term is not None
    core = scheduler.term.core
    await until(lambda: not core.graph.requests and not core.ahead.num_waiting)
    await until(lambda: set(told(other, "release")) >= set(told(other, "retain")))


async def test_a_new_leader_gives_the_hints_anew(
    shell_store: Store, app: App, engines: Engines, running: Start
) -> None:
    engine = await engines("e0", **BIG)
    engine.gate.clear()
    first = Scheduler(shell_store, EAGER)
    doomed = running(first)
    end, expected = await submit_chain(app)
    await until(lambda: engine.hints)
    doomed.cancel()
    await asyncio.gather(doomed, return_exceptions=True)
    running(Scheduler(shell_store, EAGER))
    await until(lambda: len(engine.hints) == 2)
    assert engine.hints[0] == engine.hints[1]
    engine.gate.set()
    assert (await app.get(end)).value == expected


@pytest.mark.parametrize("settings", [OFF, QUICK], ids=["off", "on"])
async def test_with_the_switches_off_nothing_is_sent(
    settings: Any, shell_store: Store, app: App, engines: Engines, running: Start
) -> None:
    engine = await engines("e0", **BIG)
    running(Scheduler(shell_store, settings))
    engine.gate.clear()
    end, expected = await submit_chain(app, 4)
    await engine.started.wait()
    await until(lambda: engine.hints or settings is OFF)
    engine.gate.set()
    assert (await app.get(end)).value == expected
    assert bool(engine.hints) is (settings is QUICK)


async def test_short_prompts_cost_no_message(shell_store: Store, app: App, engines: Engines, running: Start) -> None:
    engine = await engines("e0", **BIG)
    running(Scheduler(shell_store, QUICK))
    end = app.call([app.value("start")], max_tokens=4)
    for _ in range(5):
        end = app.call([end], max_tokens=4)
    await app.submit()
    assert (await app.get(end)).value == "start"
    assert engine.hints == []
