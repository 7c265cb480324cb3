"""Failures: back-off and retry, then the error on the output and on everything downstream."""

from __future__ import annotations

import pytest

from parrot_mq.errors import ErrorRecord, Fenced
from tests.store.lab import FAILURE, Lab


async def test_a_failed_attempt_waits_out_its_back_off(lab: Lab) -> None:
    request, output = await lab.one(await lab.session())
    claim = await lab.start(request)
    before = await lab.scheduler.partition.now_ms()
    await lab.engine.fail(request, claim.fence, FAILURE, retry=True)
    record = await lab.reader.request(request)
    assert record is not None
    assert (record.state, record.engine, record.attempt, record.rev) == ("waiting", "", 1, 4)
    due = await lab.redis.zscore(lab.keys.delayed, request)
    assert before + 200 <= due <= await lab.scheduler.partition.now_ms() + 200
    assert await lab.redis.exists(lab.keys.leases) == 0
    (hint,) = await lab.hints("released")
    assert (hint["request"], hint["rev"], hint["state"]) == (request, "4", "waiting")
    await lab.scheduler.reap()
    assert await lab.state(request) == "waiting"  # not yet
    await lab.end_backoff(request)
    assert not await lab.scheduler.reap()
    assert await lab.state(request) == "ready"
    assert (await lab.hints("ready"))[-1]["ready"] == f"{request}:5"
    assert await lab.redis.exists(lab.keys.delayed) == 0
    await lab.run(request, "second time lucky")
    assert await lab.text(output) == "second time lucky"


async def test_the_back_off_doubles_up_to_its_limit(lab: Lab) -> None:
    many = lab.under(max_attempts=6, backoff_base_s=10.0, backoff_max_s=50.0)
    request, _ = await many.one(await many.session())
    delays = []
    for _ in range(5):
        claim = await many.start(request)
        before = await many.scheduler.partition.now_ms()
        await many.engine.fail(request, claim.fence, FAILURE, retry=True)
        delays.append(round((await lab.redis.zscore(lab.keys.delayed, request) - before) / 1000))
        await many.end_backoff(request)
        await many.scheduler.reap()
    assert delays == [10, 20, 40, 50, 50]


async def test_after_the_last_attempt_it_is_a_dead_letter(lab: Lab) -> None:
    session = await lab.session()
    request, output = await lab.one(session)
    for attempt in range(1, 4):
        claim = await lab.start(request, f"e{attempt}")
        assert claim.attempt == attempt
        await lab.engine.fail(request, claim.fence, FAILURE, retry=True)
        await lab.end_backoff(request)
        await lab.scheduler.reap()
    assert await lab.state(request) == "dead"
    assert await lab.error(output) == FAILURE
    ((_, letter),) = await lab.redis.xrange(lab.keys.dead)
    assert (letter["request"], letter["engine"], letter["attempts"]) == (request, "e3", "3")
    assert ErrorRecord.from_json(letter["error"]) == FAILURE
    assert await lab.live(session) == 0
    assert await lab.reader.live() == []


async def test_without_retry_it_fails_at_once(lab: Lab) -> None:
    request, output = await lab.one(await lab.session())
    claim = await lab.start(request)
    await lab.engine.fail(request, claim.fence, FAILURE, retry=False)
    assert await lab.state(request) == "dead"
    assert (await lab.error(output)).request == FAILURE.request
    (hint,) = await lab.hints("ready")
    assert (hint["ready"], hint["dead"]) == ("", f"{request}:4")
    assert await lab.redis.xlen(lab.keys.dead) == 1
    assert await lab.redis.xlen(lab.keys.engine_control("e1")) == 0  # the engine need not be told


@pytest.mark.parametrize("retry", [True, False])
async def test_the_same_report_again_changes_nothing(lab: Lab, retry: bool) -> None:
    request, _ = await lab.one(await lab.session())
    claim = await lab.start(request)
    await lab.engine.fail(request, claim.fence, FAILURE, retry=retry)
    before = await lab.snapshot()
    await lab.engine.fail(request, claim.fence, FAILURE, retry=retry)
    assert await lab.snapshot() == before
    if retry:  # nor once it runs again
        await lab.end_backoff(request)
        await lab.scheduler.reap()
        second = await lab.start(request)
        await lab.engine.fail(request, claim.fence, FAILURE, retry=True)
        assert await lab.state(request) == "running"
        await lab.complete(second)


async def test_failing_before_the_start_is_an_attempt_too(lab: Lab) -> None:
    request, output = await lab.one(await lab.session())
    for _ in range(3):
        await lab.heartbeat()
        fence = await lab.dispatch(request)
        await lab.engine.fail(request, fence, FAILURE, retry=True)
        assert await lab.redis.xlen(lab.keys.engine_queue("e1")) == 0
        await lab.end_backoff(request)
        await lab.scheduler.reap()
    assert await lab.error(output) == FAILURE
    assert await lab.redis.xlen(lab.keys.dead) == 1


@pytest.mark.parametrize("why", ["lost", "cancelled", "done", "unknown"])
async def test_only_the_owner_may_fail_it(lab: Lab, why: str) -> None:
    request, _ = await lab.one(await lab.session())
    claim = await lab.start(request)
    if why == "lost":
        await lab.expire_lease(request)
        await lab.scheduler.reap()
        await lab.start(request, "e2")
    elif why == "cancelled":
        await lab.producer.cancel_requests([request])
    elif why == "done":
        await lab.complete(claim)
    else:
        request = lab.id("r")
    before = await lab.snapshot()
    with pytest.raises(Fenced, match=request):
        await lab.engine.fail(request, claim.fence, FAILURE, retry=True)
    assert await lab.snapshot() == before


async def test_everything_downstream_gets_the_error(lab: Lab) -> None:
    """Through a chain longer than one script call may serve."""
    small = lab.under(fanout_units=8)
    session = await small.session()
    requests, outputs = await small.chain(session, 60)
    claim = await small.start(requests[0])
    await small.engine.fail(requests[0], claim.fence, FAILURE, retry=False)
    assert await small.state(requests[-1]) == "waiting"
    assert await small.propagate() == 14
    assert await small.states(requests) == ["dead"] * 60
    assert await small.error(outputs[-1]) == FAILURE
    assert await small.live(session) == 0
    assert await small.redis.xlen(small.keys.work) == 0
    assert await small.redis.xlen(small.keys.dead) == 1
    told = [pair for hint in await small.hints() for pair in hint.get("dead", "").split()]
    assert sorted(told) == sorted([f"{requests[0]}:4", *(f"{request}:2" for request in requests[1:])])


async def test_one_bad_input_is_enough(lab: Lab) -> None:
    session = await lab.session()
    bad, good, output = lab.variable(), lab.variable(), lab.variable()
    request = lab.request([good, bad], output)
    await lab.submit(session, [bad, good, output], [request])
    await lab.producer.cancel_variable(bad.id)
    assert await lab.state(request[0].id) == "dead"
    await lab.producer.set_variable(good.id, lab.value("too late"))
    assert await lab.state(request[0].id) == "dead"
    assert (await lab.error(output.id)).kind == "Cancelled"


@pytest.mark.parametrize("state", ["ready", "waiting", "delayed"])
async def test_what_no_engine_has_can_be_rejected(lab: Lab, state: str) -> None:
    session = await lab.session()
    (first, second), (_, last) = await lab.chain(session, 2)
    request = second if state == "waiting" else first
    if state == "delayed":
        claim = await lab.start(first)
        await lab.engine.fail(first, claim.fence, FAILURE, retry=True)
    error = ErrorRecord("UnknownModel", "no engine serves 'gpt-9'", request)
    await lab.scheduler.reject(request, error)
    assert await lab.state(request) == "dead"
    assert await lab.error(last) == error
    assert await lab.redis.exists(lab.keys.delayed) == 0
    assert await lab.redis.xlen(lab.keys.dead) == int(state == "delayed")
    before = await lab.snapshot()
    await lab.scheduler.reject(request, error)
    assert await lab.snapshot() == before


@pytest.mark.parametrize("state", ["queued", "running", "done", "unknown"])
async def test_what_an_engine_has_is_not_rejected(lab: Lab, state: str) -> None:
    request, _ = await lab.one(await lab.session())
    await lab.heartbeat()
    if state == "queued":
        await lab.dispatch(request)
    elif state != "unknown":
        claim = await lab.start(request)
        if state == "done":
            await lab.complete(claim)
    before = await lab.snapshot()
    await lab.scheduler.reject(lab.id("r") if state == "unknown" else request, FAILURE)
    assert await lab.snapshot() == before
