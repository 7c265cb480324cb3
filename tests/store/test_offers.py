"""What a queue's entry offers: the claim before it is made, so that an engine can begin while it is."""

from __future__ import annotations

import dataclasses

import pytest

from parrot_mq.errors import Fenced, NotClaimed
from parrot_mq.store.records import Assignment, Claim, Usage
from tests.store.lab import Lab


async def offered(lab: Lab, request: str) -> Assignment:
    """Dispatch a ready request and return its assignment."""
    await lab.heartbeat()
    assert await lab.dispatch(request)
    (assignment,) = await lab.receive()
    return assignment


async def claimed(lab: Lab, assignment: Assignment) -> Claim | None:
    (claim,) = await lab.engine.start("e1", [assignment])
    return claim


async def test_an_offer_is_the_claim(lab: Lab) -> None:
    session, first, second, output = await lab.session(), lab.variable("a \U0001f40d"), lab.variable(""), lab.variable()
    spec, inputs = lab.request([first, second], output)
    await lab.submit(session, [first, second, output], [(spec, inputs)])
    assignment = await offered(lab, spec.id)
    assert assignment.offer is not None
    assert [(i.id, i.text) for i in assignment.offer.inputs] == [(first.id, "a \U0001f40d"), (second.id, "")]
    assert type(spec).from_json(assignment.offer.spec_json) == spec
    # The same whether or not the engine says that it has the offer.
    assert await claimed(lab, dataclasses.replace(assignment, offer=None)) == assignment.offer
    assert await claimed(lab, assignment) == assignment.offer


async def test_an_offer_holds_token_ids(lab: Lab) -> None:
    session, middle, output = await lab.session(), lab.variable(), lab.variable()
    first, second = lab.request([], middle), lab.request([middle], output)
    await lab.submit(session, [middle, output], [first, second])
    claim = await lab.start(first[0].id)
    value = dataclasses.replace(lab.value("done"), token_ids=(5, 6), tokens_by="m@t")
    await lab.engine.complete(first[0].id, claim.fence, middle.id, value, Usage(1, 0, 1, finish="stop"))
    assignment = await offered(lab, second[0].id)
    assert assignment.offer is not None
    (read,) = assignment.offer.inputs
    assert (read.text, read.token_ids, read.tokens_by) == ("done", (5, 6), "m@t")
    assert await claimed(lab, assignment) == assignment.offer


@pytest.mark.parametrize("why", ["a large value", "large together", "many inputs", "a stream"])
async def test_what_is_large_or_streamed_is_not_offered(lab: Lab, why: str) -> None:
    session, output = await lab.session(), lab.variable()
    limit = lab.partition.settings.offer_bytes
    given = [lab.variable("x")]
    if why == "a large value":
        given = [lab.variable("x" * lab.partition.settings.inline_bytes)]
    elif why == "large together":
        given = [lab.variable("x" * (limit // 2)) for _ in range(3)]
    elif why == "many inputs":
        given = [lab.variable("x") for _ in range(17)]
    request = lab.request(given, output)
    for variable in given:
        await lab.partition.stage(variable.id, variable.value)
    await lab.submit(session, [*given, output], [request])
    if why == "a stream":
        await lab.producer.want(output.id, stream=True)
    assignment = await offered(lab, request[0].id)
    assert assignment.offer is None
    claim = await claimed(lab, assignment)
    assert claim is not None
    assert [i.id for i in claim.inputs] == [v.id for v in given]
    assert claim.streamed == (why == "a stream")


async def test_a_stream_that_is_asked_for_after_the_offer_comes_with_the_claim(lab: Lab) -> None:
    request, output = await lab.one(await lab.session())
    assignment = await offered(lab, request)
    assert assignment.offer is not None
    await lab.producer.want(output, stream=True)
    claim = await claimed(lab, assignment)
    assert claim == dataclasses.replace(assignment.offer, streamed=True)


async def test_a_second_offer_counts_the_attempt(lab: Lab) -> None:
    request, _ = await lab.one(await lab.session())
    await lab.start(request)
    await lab.expire_lease(request)
    await lab.scheduler.reap()
    assignment = await offered(lab, request)
    assert assignment.offer is not None
    assert assignment.offer.attempt == 2
    assert await claimed(lab, assignment) == assignment.offer


async def test_a_value_deleted_after_the_offer_is_there_all_the_same(lab: Lab) -> None:
    given, output = lab.variable("x"), lab.variable()
    first, second = await lab.session(), await lab.session()
    await lab.submit(first, [given])
    request = lab.request([given], output)
    await lab.submit(second, [output], [request])
    assignment = await offered(lab, request[0].id)
    await lab.producer.delete_session(first)
    assert assignment.offer is not None
    claim = await claimed(lab, assignment)
    assert claim == assignment.offer
    await lab.complete(claim, "made of x")
    assert await lab.text(output.id) == "made of x"


async def test_a_result_is_a_claim_as_well(lab: Lab) -> None:
    request, output = await lab.one(await lab.session())
    assignment = await offered(lab, request)
    await lab.complete_as(request, assignment.fence, output, "at once")
    record = await lab.reader.request(request)
    assert record is not None
    assert (record.state, record.attempt) == ("done", 1)
    assert await lab.text(output) == "at once"
    assert await lab.redis.xlen(lab.keys.engine_queue("e1")) == 0
    assert (await lab.redis.xpending(lab.keys.engine_queue("e1"), "engine"))["pending"] == 0
    assert await claimed(lab, assignment) is None
    assert await lab.state(request) == "done"
    assert await lab.redis.zcard(lab.keys.leases) == 0


async def test_a_result_under_another_fence_is_refused(lab: Lab) -> None:
    request, output = await lab.one(await lab.session())
    assignment = await offered(lab, request)
    with pytest.raises(Fenced, match="not ours"):
        await lab.complete_as(request, "1.other", output)
    await lab.engine.release("e1", [(request, assignment.fence)])
    with pytest.raises(Fenced, match="ready"):
        await lab.complete_as(request, assignment.fence, output)
    assert await lab.text(output) is None


async def test_a_streamed_output_wants_its_claim_first(lab: Lab) -> None:
    request, output = await lab.one(await lab.session())
    assignment = await offered(lab, request)
    await lab.producer.want(output, stream=True)
    with pytest.raises(NotClaimed, match="streamed"):
        await lab.complete_as(request, assignment.fence, output)
    assert await lab.state(request) == "queued"
    claim = await claimed(lab, assignment)
    assert claim is not None
    await lab.complete(claim, "with its claim")
    assert await lab.text(output) == "with its claim"
