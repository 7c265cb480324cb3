"""Claiming: what an engine gets with a request, and that it gets it once."""

from __future__ import annotations

import pytest

from parrot_mq.store import encode_value
from parrot_mq.store.records import Assignment, Usage
from tests.store.lab import Lab


async def test_a_claim_holds_all_that_the_engine_needs(lab: Lab) -> None:
    session, given, output = await lab.session(), lab.variable("a snake"), lab.variable()
    spec, inputs = lab.request([given], output)
    await lab.submit(session, [given, output], [(spec, inputs)])
    before = await lab.scheduler.partition.now_ms()
    claim = await lab.start(spec.id)
    assert (claim.request, claim.attempt, claim.session, claim.tenant) == (spec.id, 1, session, "acme")
    assert type(spec).from_json(claim.spec_json) == spec
    assert [(i.id, i.text, i.reference) for i in claim.inputs] == [(given.id, "a snake", "")]
    assert (claim.streamed, claim.published_ids) == (False, ())
    record = await lab.reader.request(spec.id)
    assert record is not None
    assert (record.state, record.attempt, record.rev) == ("running", 1, 3)
    assert record.started_ms >= before
    deadline = await lab.redis.zscore(lab.keys.leases, spec.id)
    assert before + 10_000 <= deadline <= await lab.scheduler.partition.now_ms() + 10_000


async def test_the_entry_leaves_the_queue_and_its_pending_list(lab: Lab) -> None:
    request, _ = await lab.one(await lab.session())
    await lab.start(request)
    assert await lab.redis.xlen(lab.keys.engine_queue("e1")) == 0
    assert (await lab.redis.xpending(lab.keys.engine_queue("e1"), "engine"))["pending"] == 0


async def test_the_same_call_again_gives_the_same_answer(lab: Lab) -> None:
    request, _ = await lab.one(await lab.session())
    await lab.heartbeat()
    await lab.dispatch(request)
    assignments = await lab.receive()
    first = await lab.engine.start("e1", assignments)
    assert await lab.engine.start("e1", assignments) == first
    assert first[0] is not None
    assert first[0].attempt == 1


@pytest.mark.parametrize("lost", ["cancelled", "released", "failed", "done", "deleted", "unknown"])
async def test_what_is_not_ours_any_more_is_not_claimed(lab: Lab, lost: str) -> None:
    session = await lab.session()
    request, _ = await lab.one(session)
    await lab.heartbeat()
    fence = await lab.dispatch(request)
    (assignment,) = await lab.receive()
    if lost == "cancelled":
        await lab.producer.cancel_requests([request])
    elif lost == "released":
        await lab.engine.release("e1", [(request, fence)])
        assert await lab.dispatch(request)  # another fence
    elif lost == "failed":
        await lab.partition.call("fail", request, fence, "{}", "1")
    elif lost == "done":
        (claim,) = await lab.engine.start("e1", [assignment])
        assert claim is not None
        await lab.complete(claim)
    elif lost == "deleted":
        await lab.producer.delete_session(session)
    else:
        assignment = Assignment(assignment.entry_id, lab.id("r"), fence, "")
    before = await lab.state(request)
    assert await lab.engine.start("e1", [assignment]) == [None]
    assert await lab.state(request) == before


async def test_each_of_many_is_answered_in_its_place(lab: Lab) -> None:
    session = await lab.session()
    requests = [(await lab.one(session, f"text {i}"))[0] for i in range(5)]
    await lab.heartbeat()
    for request in requests:
        await lab.dispatch(request)
    assignments = await lab.receive()
    await lab.producer.cancel_requests([requests[2]])
    claims = await lab.engine.start("e1", assignments)
    assert [claim and claim.inputs[0].text for claim in claims] == ["text 0", "text 1", None, "text 3", "text 4"]


async def test_large_inputs_come_as_references(lab: Lab) -> None:
    session, large, output = await lab.session(), lab.variable("y" * 40_000), lab.variable()
    request = lab.request([large], output)
    await lab.submit(session, [large, output], [request])
    (given,) = (await lab.start(request[0].id)).inputs
    assert given.text is None
    assert await lab.engine.fetch(given.reference) == "y" * 40_000
    assert await lab.engine.fetch(given.reference + "x") is None


async def test_generated_ids_come_with_their_text(lab: Lab) -> None:
    (first, second), (middle, _) = await lab.chain(await lab.session(), 2)
    claim = await lab.start(first)
    value = encode_value("ab", lab.partition.settings, claim.fence, (7, 8), "m")
    await lab.engine.complete(first, claim.fence, middle, value, Usage())
    (given,) = (await lab.start(second)).inputs
    assert (given.text, given.token_ids, given.tokens_by) == ("ab", (7, 8), "m")


@pytest.mark.parametrize("size", [5, 40_000])
async def test_within_one_call_the_raw_text_is_read(lab: Lab, size: int) -> None:
    session, call = await lab.session(), lab.id("c")
    given, middle, last, other = lab.variable("x"), lab.variable(), lab.variable(), lab.variable()
    producing = lab.request([given], middle, call=call)
    same, foreign = lab.request([middle], last, call=call), lab.request([middle], other)
    await lab.submit(session, [given, middle, last, other], [producing, same, foreign])
    claim = await lab.start(producing[0].id)
    settings, raw = lab.partition.settings, "r" * size
    value = encode_value("v" * size, settings, claim.fence, (1, 2), "m")
    await lab.engine.complete(
        claim.request, claim.fence, middle.id, value, Usage(), encode_value(raw, settings, claim.fence)
    )
    (seen,) = (await lab.start(same[0].id)).inputs
    assert (seen.text if size == 5 else await lab.engine.fetch(seen.reference)) == raw
    assert seen.token_ids == ()
    (seen,) = (await lab.start(foreign[0].id)).inputs
    assert (seen.text if size == 5 else await lab.engine.fetch(seen.reference)) == "v" * size
    assert seen.token_ids == (1, 2)


async def test_a_retry_is_told_what_was_published(lab: Lab) -> None:
    request, output = await lab.one(await lab.session())
    await lab.producer.want(output, stream=True)
    claim = await lab.start(request)
    await lab.engine.emit(request, claim.fence, 0, [10, 11], "ab")
    await lab.engine.emit(request, claim.fence, 2, [12], "c")
    await lab.expire_lease(request)
    await lab.scheduler.reap()
    second = await lab.start(request)
    assert second.published_ids == (10, 11, 12)
    assert second.attempt == 2
    # It publishes a part again, then goes on; a third attempt gets each token once.
    await lab.engine.emit(request, second.fence, 1, [11, 12, 13], "bcd")
    await lab.engine.emit(request, second.fence, 6, [99], "after a gap")
    await lab.expire_lease(request)
    await lab.scheduler.reap()
    third = await lab.start(request)
    assert third.published_ids == (10, 11, 12, 13)


async def test_an_input_that_was_deleted_is_an_error_not_an_empty_prompt(lab: Lab) -> None:
    too_large_to_be_offered = "x" * (lab.partition.settings.offer_bytes + 1)
    given, output, last = lab.variable(too_large_to_be_offered), lab.variable(), lab.variable()
    first = await lab.session()
    await lab.submit(first, [given])
    second = await lab.session()
    request, after = lab.request([given], output), lab.request([output], last)
    await lab.submit(second, [output, last], [request, after])
    await lab.heartbeat()
    await lab.dispatch(request[0].id)
    await lab.producer.delete_session(first)
    assert await lab.engine.start("e1", await lab.receive()) == [None]
    error = await lab.error(last.id)
    assert error.kind == "Expired"
    assert given.id in error.message
    assert await lab.live(second) == 0
    assert (await lab.hints("ready"))[-1]["dead"].count(":") == 2
    assert await lab.redis.zcard(lab.keys.leases) == 0
