"""Cancellation in each state, and of everything downstream."""

from __future__ import annotations

import pytest

from parrot_mq.errors import BadType
from tests.store.lab import FAILURE, Lab


async def brought_to(lab: Lab, state: str) -> tuple[str, str]:
    """Return a request in ``state``, and its output."""
    session = await lab.session()
    (first, second), outputs = await lab.chain(session, 2)
    if state == "waiting":
        return second, outputs[1]
    if state == "queued":
        await lab.heartbeat()
        await lab.dispatch(first)
    elif state != "ready":
        claim = await lab.start(first)
        if state == "delayed":
            await lab.engine.fail(first, claim.fence, FAILURE, retry=True)
        elif state == "done":
            await lab.complete(claim)
        elif state == "dead":
            await lab.engine.fail(first, claim.fence, FAILURE, retry=False)
    return first, outputs[0]


@pytest.mark.parametrize("state", ["waiting", "delayed", "ready", "queued", "running"])
async def test_what_is_not_finished_is_cancelled(lab: Lab, state: str) -> None:
    request, output = await brought_to(lab, state)
    record = await lab.reader.request(request)
    assert record is not None
    live = await lab.live(record.session)
    assert await lab.producer.cancel_requests([request], "no longer needed") == 1
    assert await lab.state(request) == "cancelled"
    error = await lab.error(output)
    assert (error.kind, error.message, error.request) == ("Cancelled", "no longer needed", request)
    assert await lab.live(record.session) == (live - 1 if state == "waiting" else 0)  # the consumer dies with it
    assert request not in await lab.reader.live()
    for key in (lab.keys.leases, lab.keys.delayed, lab.keys.dead):
        assert await lab.redis.exists(key) == 0
    assert f"{request}:{record.rev + 1}" in (await lab.hints("ready"))[-1]["dead"].split()
    told = [(c.kind, c.request, c.fence) for c in (await lab.engine.receive("e1", "0", block_ms=1))[1]] if (
        await lab.engine.is_registered("e1")
    ) else []  # fmt: skip
    assert told == ([("cancel", request, record.fence)] if state in ("queued", "running") else [])
    before = await lab.snapshot()
    assert await lab.producer.cancel_requests([request]) == 0
    assert await lab.snapshot() == before


@pytest.mark.parametrize("state", ["done", "dead"])
async def test_what_is_finished_stays_as_it_is(lab: Lab, state: str) -> None:
    request, output = await brought_to(lab, state)
    before = await lab.snapshot()
    assert await lab.producer.cancel_requests([request]) == 0
    assert await lab.producer.cancel_variable(output) == 0
    assert await lab.snapshot() == before


async def test_a_cancelled_request_leaves_its_engines_queue(lab: Lab) -> None:
    request, _ = await brought_to(lab, "queued")
    await lab.producer.cancel_requests([request])
    assert [entry for entry in await lab.redis.xrange(lab.keys.engine_queue("e1")) if "request" in entry[1]] == []


async def test_what_was_never_submitted_is_not_cancelled(lab: Lab) -> None:
    assert await lab.producer.cancel_requests([lab.id("r")]) == 0
    assert await lab.producer.cancel_variable(lab.id("v")) == 0
    with pytest.raises(BadType):
        await lab.producer.cancel_variable("0-r-abc")
    assert await lab.snapshot() == {}


async def test_everything_downstream_is_errored(lab: Lab) -> None:
    session = await lab.session()
    requests, outputs = await lab.chain(session, 30)
    assert await lab.producer.cancel_variable(outputs[4]) == 1
    assert await lab.states(requests) == ["ready", *["waiting"] * 3, "cancelled", *["dead"] * 25]
    assert {(await lab.error(output)).request for output in outputs[4:]} == {requests[4]}
    assert await lab.live(session) == 4
    (hint,) = await lab.hints("ready")
    assert len(hint["dead"].split()) == 26


async def test_many_are_cancelled_in_parts(lab: Lab) -> None:
    session = await lab.session()
    given = lab.variable("x")
    outputs = [lab.variable() for _ in range(450)]
    requests = [lab.request([given], output) for output in outputs]
    await lab.submit(session, [given, *outputs], requests)
    assert await lab.producer.cancel_requests([spec.id for spec, _ in requests]) == 450
    assert len(await lab.hints("ready")) == 8
    assert await lab.live(session) == 0


async def test_a_variable_without_a_producer_becomes_an_error(lab: Lab) -> None:
    session, given, output = await lab.session(), lab.variable(), lab.variable()
    request = lab.request([given], output)
    await lab.submit(session, [given, output], [request])
    assert await lab.producer.cancel_variable(given.id, "not coming") == 1
    assert await lab.state(request[0].id) == "dead"
    assert (await lab.error(output.id)).message == "not coming"
    assert await lab.producer.cancel_variable(given.id) == 0


async def test_a_set_variable_is_not_cancelled(lab: Lab) -> None:
    given = lab.variable("x")
    await lab.submit(await lab.session(), [given])
    assert await lab.producer.cancel_variable(given.id) == 0
    assert await lab.text(given.id) == "x"


async def test_reasons_are_kept_whatever_they_say(lab: Lab) -> None:
    _, output = await brought_to(lab, "ready")
    await lab.producer.cancel_variable(output, 'he said "no" \\ \n 🦜\0')
    assert (await lab.error(output)).message == 'he said "no" \\ \n 🦜\0'


async def test_a_session_is_cancelled_and_closed(lab: Lab) -> None:
    session, other = await lab.session(), await lab.session()
    requests, _ = await lab.chain(session, 5)
    untouched, _ = await lab.one(other)
    assert await lab.producer.cancel_session(session) >= 1
    assert set(await lab.states(requests)) <= {"cancelled", "dead"}
    assert await lab.live(session) == 0
    assert await lab.state(untouched) == "ready"
    record = await lab.reader.session(session)
    assert record is not None
    assert record.state == "closed"
