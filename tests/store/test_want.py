"""Objectives: the strictest one stated so far holds, and a running engine is told to stream."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from parrot_mq.messages import LATENCY, THROUGHPUT, TPOT, TTFT, Deadline, Objective, ObjectiveKind
from tests.store.lab import Lab

ORDER = [THROUGHPUT, TPOT, TTFT, Objective(ObjectiveKind.TTFT, 500), Objective(ObjectiveKind.TTFT, 50), LATENCY]
"""From the least strict to the strictest: a bound that is stated beats none, a smaller one beats a larger one."""


async def objective(lab: Lab, variable: str) -> Objective | None:
    record = await lab.reader.variable(variable)
    assert record is not None
    return record.objective


async def made(lab: Lab) -> str:
    variable = lab.variable()
    await lab.submit(await lab.session(), [variable])
    return variable.id


@pytest.mark.parametrize("first", range(len(ORDER)))
async def test_the_strictest_holds(lab: Lab, first: int) -> None:
    variable = await made(lab)
    assert await lab.producer.want(variable, ORDER[first])
    for other in ORDER:
        assert await lab.producer.want(variable, other)
    assert await objective(lab, variable) == LATENCY
    lines = [hint["objectives"].split(" ", 1) for hint in await lab.hints("objectives")]
    assert {vid for vid, _ in lines} == {variable}
    hints = [Objective.from_json(text) for _, text in lines]
    assert hints[0] == ORDER[first]
    assert all(one.strictness < two.strictness for one, two in itertools.pairwise(hints))
    assert hints[-1] == LATENCY


async def test_a_deadline_becomes_a_point_in_time(lab: Lab) -> None:
    variable = await made(lab)
    before = await lab.scheduler.partition.now_ms()
    await lab.producer.want(variable, LATENCY)
    await lab.producer.want(variable, Deadline(60))
    found = await objective(lab, variable)
    assert found is not None
    assert (found.kind, found.value_ms) == (ObjectiveKind.DEADLINE, 60_000)
    assert before + 60_000 <= found.at_ms <= await lab.scheduler.partition.now_ms() + 60_000
    assert found.strictness > LATENCY.strictness
    stored = await lab.redis.hget(lab.keys.variable(variable), "strictness")
    assert stored == str(found.strictness)


async def test_the_nearer_deadline_is_the_stricter(lab: Lab) -> None:
    variable = await made(lab)
    for seconds, holds in [(60, 60), (90, 60), (30, 30), (30, 30)]:
        await lab.producer.want(variable, Deadline(seconds))
        found = await objective(lab, variable)
        assert found is not None
        assert found.value_ms == holds * 1000
    await lab.producer.want(variable, LATENCY)
    found = await objective(lab, variable)
    assert found is not None
    assert found.kind is ObjectiveKind.DEADLINE
    assert len(await lab.hints("objectives")) == 2


async def test_unknown(lab: Lab) -> None:
    variable = lab.id("v")
    before = await lab.snapshot()
    assert not await lab.producer.want(variable, LATENCY)
    assert await lab.producer.wants([(variable, LATENCY)]) == [None]
    assert await lab.snapshot() == before


async def test_what_is_resolved_wants_nothing_more(lab: Lab) -> None:
    given = lab.variable("x")
    await lab.submit(await lab.session(), [given])
    before = await lab.snapshot()
    assert await lab.producer.want(given.id, LATENCY, stream=True)
    assert await lab.snapshot() == before


async def test_many_in_one_round_trip(lab: Lab) -> None:
    first, second, given = lab.variable(), lab.variable(), lab.variable("x")
    await lab.submit(await lab.session(), [first, second, given])
    await lab.redis.script_flush()
    wanted = [(first.id, TTFT), (second.id, Deadline(9)), (given.id, None), (lab.id("v"), LATENCY)]
    assert await lab.producer.wants(wanted) == ["pending", "pending", "ready", None]
    assert await objective(lab, first.id) == TTFT
    assert await lab.producer.wants([(first.id, None)]) == ["pending"]
    assert await objective(lab, first.id) == TTFT


async def test_wanting_keeps_the_session(lab: Lab) -> None:
    variable = await made(lab)
    (session,) = await lab.reader.sessions()
    await lab.redis.zadd(lab.keys.sessions, {session: 5})
    await lab.producer.want(variable)
    assert await lab.redis.zscore(lab.keys.sessions, session) > 5


async def test_a_running_engine_is_told_to_stream(lab: Lab) -> None:
    request, output = await lab.one(await lab.session())
    claim = await lab.start(request)
    assert not claim.streamed
    await lab.producer.want(output, TTFT, stream=True)
    await lab.producer.want(output, TTFT, stream=True)
    assignments, controls = await lab.engine.receive("e1", "0", block_ms=1)
    assert assignments == []
    assert [(c.kind, c.request, c.fence) for c in controls] == [("stream", request, claim.fence)]


async def test_a_request_that_starts_later_knows_that_it_streams(lab: Lab) -> None:
    request, output = await lab.one(await lab.session())
    await lab.producer.want(output, stream=True)
    claim = await lab.start(request)
    assert claim.streamed
    assert (await lab.engine.receive("e1", "0", block_ms=1)) == ([], [])


async def test_an_engine_that_is_gone_is_not_told(lab: Lab) -> None:
    request, output = await lab.one(await lab.session())
    await lab.start(request)
    await lab.redis.delete(lab.keys.engine_queue("e1"))
    await lab.producer.want(output, stream=True)
    assert not await lab.redis.exists(lab.keys.engine_queue("e1"), lab.keys.engine_control("e1"))


async def test_a_submit_carries_objectives(lab: Lab) -> None:
    session = await lab.session()
    text = lab.variable("given")
    plain, wanted = (dataclasses.replace(lab.variable(), objective=o) for o in (None, TTFT))
    due = dataclasses.replace(lab.variable(), objective=Deadline(60))
    before = await lab.scheduler.partition.now_ms()
    requests = [lab.request([text], output) for output in (plain, wanted, due)]
    for _ in range(2):  # the same submit again changes nothing
        await lab.submit(session, [text, plain, wanted, due], requests)
    assert await objective(lab, plain.id) is None
    assert await objective(lab, wanted.id) == TTFT
    found = await objective(lab, due.id)
    assert found is not None
    assert before + 60_000 <= found.at_ms <= await lab.scheduler.partition.now_ms() + 60_000
    assert await lab.redis.hget(lab.keys.variable(due.id), "strictness") == str(found.strictness)
    hinted = [line.split(" ", 1) for hint in await lab.hints("submitted") for line in hint["objectives"].splitlines()]
    assert {vid: Objective.from_json(text) for vid, text in hinted} == {wanted.id: TTFT, due.id: found}
    assert await lab.hints("objectives") == []


async def test_an_objective_of_a_submit_can_be_surpassed(lab: Lab) -> None:
    variable = dataclasses.replace(lab.variable(), objective=TTFT)
    await lab.submit(await lab.session(), [variable])
    for stated, holds in [(THROUGHPUT, TTFT), (LATENCY, LATENCY)]:
        assert await lab.producer.want(variable.id, stated)
        assert await objective(lab, variable.id) == holds
