"""Asking the scheduler about requests, and what is kept of a placement."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from parrot_mq.errors import Overloaded
from parrot_mq.messages import Aim, EngineAnswer, Placed, Refusal, RequestState, Standing
from parrot_mq.store.records import DispatchItem, Lane
from parrot_mq.store.scheduler import drop_leadership, take_leadership
from parrot_mq.store.why import answer, ask
from tests.store.lab import Lab


@pytest.fixture
async def leader(lab: Lab) -> AsyncIterator[str]:
    """A scheduler that leads, and gives its key up at the end."""
    assert await take_leadership(lab.store, "scheduler-1", 600.0)
    yield "scheduler-1"
    await drop_leadership(lab.store, "scheduler-1")


def said(request: str) -> Standing:
    engines = (EngineAnswer("e0", Refusal.FULL, 12.5, 9, 8), EngineAnswer("e1", None, 40.0, 0, 8))
    aim = Aim("latency", "0-v-x", "0-r-x", 4)
    return Standing(request, RequestState.READY, aim, "", False, "", 3, 2, 2, engines, 100, 20)


async def test_a_question_is_answered(lab: Lab, leader: str) -> None:
    request, gone = lab.id("r"), lab.id("r")
    asking = asyncio.create_task(ask(lab.store, [request, gone, request], 20.0))
    async with asyncio.timeout(20):
        while not await lab.redis.exists(lab.keys.why(request)):  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.005)
    assert [hint["requests"] for hint in await lab.hints("why")] == [f"{request} {gone}"]
    await answer(lab.partition, {request: said(request), gone: None})
    answers = await asking
    assert (answers.leader, answers.standings, answers.note) == (leader, {request: said(request)}, "")
    assert 0 < await lab.redis.pttl(lab.keys.why(request)) <= 2000


async def test_what_is_asked_again_soon_is_asked_once(lab: Lab, leader: str) -> None:
    request = lab.id("r")
    for _ in range(5):
        answers = await ask(lab.store, [request], 0.0)
        assert answers.note == f"{leader} leads, but has not answered within 0 s"
    assert len(await lab.hints("why")) == 1


async def test_nobody_is_asked_while_nobody_leads(lab: Lab) -> None:
    answers = await ask(lab.store, [lab.id("r")], 60.0)
    assert "no scheduler leads" in answers.note
    assert await lab.hints("why") == []
    assert await take_leadership(lab.store, "scheduler-1", 600.0)
    await drop_leadership(lab.store, "scheduler-1")
    assert "no scheduler leads" in (await ask(lab.store, [lab.id("r")], 60.0)).note


async def test_an_answer_that_nobody_waits_for_is_not_kept(lab: Lab) -> None:
    await answer(lab.partition, {lab.id("r"): said("0-r-a")})
    assert await lab.redis.keys("*why*") == []


async def test_a_full_redis_is_said(lab: Lab, leader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*_args: object) -> None:
        raise Overloaded("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(type(lab.partition), "call", full)
        answers = await ask(lab.store, [lab.id("r")], 60.0)
    assert answers.note == "the scheduler could not be asked: out of memory"


async def test_what_chose_an_engine_stays_with_the_request(lab: Lab) -> None:
    request, _ = await lab.one(await lab.session())
    await lab.heartbeat()
    why = Placed("resident", 12.5, (("e2", 30.0),), Aim("latency", "0-v-x"))
    await lab.scheduler.dispatch([DispatchItem(request, "e1", "{}", why.to_json())], ["t"])
    for _ in range(2):
        record = await lab.reader.request(request)
        assert record is not None
        assert Placed.from_json(record.why_json) == why
        if record.state is RequestState.QUEUED:
            (assignment,) = await lab.receive()
            (claim,) = await lab.engine.start("e1", [assignment])
            assert claim is not None
            await lab.complete(claim)
    assert await lab.state(request) == "done"


async def test_what_went_by_a_lane_says_so(lab: Lab) -> None:
    await lab.heartbeat()
    await lab.scheduler.grant({"": Lane("e1", 2)})
    request, _ = await lab.one(await lab.session())
    record = await lab.reader.request(request)
    assert record is not None
    assert Placed.from_json(record.why_json) == Placed("lane")
