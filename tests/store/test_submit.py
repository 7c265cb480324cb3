"""Submits that are accepted: what they write, that they can be repeated, and what errored inputs do."""

from __future__ import annotations

import orjson
import pytest

from parrot_mq.messages import LATENCY, RequestState, SegmentKind
from parrot_mq.store.records import NewVariable
from tests.store.lab import FAILURE, FUNCTION, Lab


async def test_a_request_with_its_inputs_set_is_ready_at_once(lab: Lab) -> None:
    session = await lab.session()
    request, output = await lab.one(session, "a snake game")
    record = await lab.reader.request(request)
    assert record is not None
    assert (record.state, record.need, record.attempt, record.rev, record.fence) == (RequestState.READY, 0, 0, 1, "")
    assert record.ready_ms == record.created_ms > 0
    assert record.session == session
    variable = await lab.reader.variable(output)
    assert variable is not None
    assert (variable.state, variable.value, variable.producer) == ("pending", None, request)
    assert await lab.reader.live() == [request]
    assert await lab.live(session) == 1


async def test_a_request_waits_for_each_pending_input_once(lab: Lab) -> None:
    session = await lab.session()
    first, second, output = lab.variable(), lab.variable(), lab.variable()
    spec, inputs = lab.request([first, second, first], output)
    await lab.submit(session, [first, second, output], [(spec, (*inputs, first.id))])
    record = await lab.reader.request(spec.id)
    assert record is not None
    assert (record.state, record.need, record.ready_ms) == ("waiting", 2, 0)
    assert record.inputs == (first.id, second.id)
    assert await lab.reader.waiters(first.id) == [spec.id]
    for variable in (first, second):
        await lab.producer.set_variable(variable.id, lab.value("given"))
    assert await lab.state(spec.id) == "ready"


async def test_the_template_is_kept_once_for_its_content(lab: Lab) -> None:
    session = await lab.session()
    await lab.submit(session, functions=[FUNCTION])
    await lab.submit(session, functions=[type(FUNCTION)("another name", FUNCTION.segments)])
    found = await lab.engine.function("acme", FUNCTION.digest)
    assert found == FUNCTION
    assert found.segments[1].kind is SegmentKind.INPUT
    assert await lab.engine.function("acme", "0" * 32) is None
    assert await lab.engine.function("globex", FUNCTION.digest) is None


async def test_the_scheduler_is_told_all_it_needs(lab: Lab) -> None:
    session = await lab.session()
    made = lab.variable()
    await lab.submit(session, [made])
    await lab.producer.want(made.id, LATENCY)
    given, output = lab.variable("a snake"), lab.variable()
    first, second = lab.request([given], made), lab.request([made], output)
    await lab.submit(session, [given, output], [first, second], batch="b7", last=False)
    hint = (await lab.hints("submitted"))[-1]
    assert (hint["session"], hint["tenant"], hint["batch"], hint["last"]) == (session, "acme", "b7", "")
    assert [spec["id"] for spec in orjson.loads(hint["specs"])] == [first[0].id, second[0].id]
    assert hint["states"] == f"{first[0].id}:1:ready {second[0].id}:1:waiting"
    assert given.value is not None
    assert hint["inputs"] == f"{given.id}:{given.value.digest}:7"
    assert hint["objectives"] == f'{made.id} {{"kind":"latency"}}'
    await lab.submit(session, [], [], batch="b7", last=True)
    assert (await lab.hints("submitted"))[-1]["last"] == "1"


async def test_the_same_submit_again_changes_nothing(lab: Lab) -> None:
    session = await lab.session()
    given, middle, output = lab.variable("x"), lab.variable(), lab.variable()
    requests = [lab.request([given], middle), lab.request([middle], output)]
    submission = ([given, middle, output], requests)
    await lab.submit(session, *submission)
    before = await lab.snapshot(without=["intake", "sessions"])
    await lab.submit(session, *submission)
    assert await lab.snapshot(without=["intake", "sessions"]) == before
    await lab.run(requests[0][0].id)
    before = await lab.snapshot(without=["intake", "sessions"])
    await lab.submit(session, *submission)
    assert await lab.snapshot(without=["intake", "sessions"]) == before
    assert (await lab.hints("submitted"))[-1]["specs"] == "[]"


async def test_repeating_a_submit_with_a_large_value_does_not_make_it_expire(lab: Lab) -> None:
    session = await lab.session()
    given = lab.variable("x" * 40_000)
    await lab.submit(session, [given])
    await lab.submit(session, [given])
    assert given.value is not None
    assert await lab.redis.pttl(lab.keys.value(given.id, given.value.fence)) == -1


async def test_a_closed_session_still_answers_the_repeat(lab: Lab) -> None:
    session = await lab.session()
    given, output = lab.variable("x"), lab.variable()
    request = lab.request([given], output)
    await lab.submit(session, [given, output], [request])
    await lab.producer.close_session(session)
    await lab.submit(session, [given, output], [request])
    assert await lab.live(session) == 1


async def test_a_variable_made_before_gets_its_value_from_a_submit(lab: Lab) -> None:
    session = await lab.session()
    given, output = lab.variable(), lab.variable()
    waiting = lab.request([given], output)
    await lab.submit(session, [given, output], [waiting])
    await lab.submit(session, [NewVariable(given.id, "x", lab.value("late"))])
    assert await lab.text(given.id) == "late"
    assert await lab.state(waiting[0].id) == "ready"
    (resolved,) = await lab.hints("resolved")
    assert resolved["variables"] == f"{given.id}:{lab.value('late').digest}:4"
    assert (await lab.hints("ready"))[-1]["ready"] == f"{waiting[0].id}:2"


async def test_a_variable_made_before_gets_a_producer(lab: Lab) -> None:
    session = await lab.session()
    made, given = lab.variable(), lab.variable("x")
    await lab.submit(session, [made])
    request = lab.request([given], made)
    await lab.submit(session, [given], [request])
    await lab.run(request[0].id, "produced")
    assert await lab.text(made.id) == "produced"


async def test_another_session_of_the_tenant_may_read(lab: Lab) -> None:
    given = lab.variable("shared")
    await lab.submit(await lab.session(), [given])
    second, output = await lab.session(), lab.variable()
    request = lab.request([given], output)
    await lab.submit(second, [output], [request])
    claim = await lab.start(request[0].id)
    assert [i.text for i in claim.inputs] == ["shared"]


async def test_errored_inputs_error_the_outputs_at_once(lab: Lab) -> None:
    session = await lab.session()
    request, output = await lab.one(session)
    claim = await lab.start(request)
    await lab.engine.fail(request, claim.fence, FAILURE, retry=False)
    other, middle, last = lab.variable(), lab.variable(), lab.variable()
    doomed, downstream = lab.request([other, output], middle), lab.request([middle], last)
    await lab.submit(session, [other, middle, last], [doomed, downstream])
    assert await lab.states([doomed[0].id, downstream[0].id]) == ["dead", "dead"]
    assert await lab.error(last.id) == FAILURE
    assert await lab.live(session) == 0
    assert await lab.reader.live() == []
    assert await lab.reader.waiters(other.id) == []
    hint = (await lab.hints("submitted"))[-1]
    assert (hint["specs"], hint["states"]) == ("[]", "")
    assert (await lab.hints("ready"))[-1]["dead"] == f"{doomed[0].id}:2 {downstream[0].id}:2"
    assert await lab.redis.xlen(lab.keys.dead) == 1  # the letter of the one that was attempted


async def test_a_consumer_submitted_before_dies_with_an_errored_chunk(lab: Lab) -> None:
    session = await lab.session()
    bad, made, last = lab.variable(), lab.variable(), lab.variable()
    consumer = lab.request([made], last)
    await lab.submit(session, [bad, made, last], [consumer])
    await lab.producer.cancel_variable(bad.id)
    await lab.submit(session, [], [lab.request([bad], made)])
    assert await lab.state(consumer[0].id) == "dead"
    assert (await lab.error(last.id)).kind == "Cancelled"


@pytest.mark.parametrize("count", [1, 600])
async def test_large_chunks_are_written_whole_and_in_order(lab: Lab, count: int) -> None:
    session = await lab.session()
    given = lab.variable("x")
    outputs = [lab.variable() for _ in range(count)]
    requests = [lab.request([given], output) for output in outputs]
    await lab.submit(session, [given, *outputs], requests)
    assert await lab.reader.live() == [spec.id for spec, _ in requests]
    assert await lab.live(session) == count
    ids = {given.id, *(o.id for o in outputs), *(spec.id for spec, _ in requests)}
    assert await lab.reader.session_ids(session) == sorted(ids)
