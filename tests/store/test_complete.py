"""Completion: the value is set, the request finished and the consumers are ready in one step, once."""

from __future__ import annotations

import asyncio
import dataclasses

import orjson
import pytest

from parrot_mq.errors import Fenced, StoreError
from parrot_mq.store import encode_value
from parrot_mq.store.completion import MAX_COMPLETIONS, Completion
from parrot_mq.store.records import Usage
from tests.store.lab import Lab


async def test_the_output_is_set_and_the_request_is_finished(lab: Lab) -> None:
    session = await lab.session()
    request, output = await lab.one(session)
    claim = await lab.start(request)
    value = encode_value("done", lab.partition.settings, claim.fence, (1, 2), "m")
    await lab.engine.complete(request, claim.fence, output, value, Usage(9, 4, 2, 1.5, 2.5, "stop"))
    variable = await lab.reader.variable(output)
    assert variable is not None
    assert (variable.state, variable.value, variable.token_ids, variable.rev) == ("ready", "done", (1, 2), 1)
    assert (variable.raw, variable.raw_fence) == (None, "")
    record = await lab.reader.request(request)
    assert record is not None
    assert (record.state, record.spec_json, record.engine, record.rev) == ("done", "", "e1", 4)
    assert orjson.loads(record.usage_json)["num_output_tokens"] == 2
    assert record.done_ms >= record.started_ms
    assert 0 < await lab.redis.pttl(lab.keys.request(request)) <= 900_000
    assert await lab.live(session) == 0
    assert await lab.reader.live() == []
    assert await lab.redis.exists(lab.keys.leases) == 0
    (hint,) = await lab.hints("resolved")
    assert (hint["variables"], hint["done"], hint["ready"]) == (f"{output}:{value.digest}:4", f"{request}:4:2", "")


async def test_consumers_become_ready_with_it(lab: Lab) -> None:
    session = await lab.session()
    given, output, late = lab.variable("x"), lab.variable(), lab.variable()
    ends = [lab.variable() for _ in range(3)]
    producing = lab.request([given], output)
    consumers = [lab.request([output], ends[0]), lab.request([output], ends[1]), lab.request([output, late], ends[2])]
    await lab.submit(session, [given, output, late, *ends], [producing, *consumers])
    await lab.run(producing[0].id)
    ids = [spec.id for spec, _ in consumers]
    assert await lab.states(ids) == ["ready", "ready", "waiting"]
    (hint,) = await lab.hints("resolved")
    assert hint["ready"] == f"{ids[0]}:2 {ids[1]}:2"
    assert await lab.redis.exists(f"{lab.keys.variable(output.id)}:wait") == 0
    await lab.producer.set_variable(late.id, lab.value("y"))
    assert await lab.state(ids[2]) == "ready"


async def test_readers_are_woken_on_both_channels(lab: Lab) -> None:
    session = await lab.session()
    request, output = await lab.one(session)
    claim = await lab.start(request)
    async with lab.partition.blocking.pubsub() as pubsub:
        channels = {lab.keys.session_channel(session), lab.keys.variable_channel(output)}
        await pubsub.subscribe(*channels)
        await lab.complete(claim)
        heard = set()
        async with asyncio.timeout(10):
            while heard != channels:
                message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=1)
                if message:
                    assert message["data"] == output
                    heard.add(message["channel"])


async def test_several_are_completed_in_one_call_each_by_itself(lab: Lab) -> None:
    """Two that are ours, one of them twice, between one that was cancelled and one whose staged value is lost."""
    session = await lab.session()
    pairs = [await lab.one(session) for _ in range(4)]
    claims = [await lab.start(request) for request, _ in pairs]
    await lab.producer.cancel_requests([pairs[1][0]])
    await lab.redis.delete(lab.keys.intake, lab.keys.events)
    values = [encode_value(text, lab.partition.settings, c.fence) for text, c in zip("abcd", claims, strict=True)]
    values[2] = dataclasses.replace(values[2], fence="lost")
    work = [
        Completion(claim.request, claim.fence, output, value, Usage(num_output_tokens=number))
        for number, (claim, (_, output), value) in enumerate(zip(claims, pairs, values, strict=True))
    ]
    lab.partition.stage = _never  # type: ignore[method-assign]
    try:
        refusals = await lab.engine.complete_many([*work, work[0]])
        again = await lab.engine.complete_many([work[3], work[0]])
    finally:
        del lab.partition.stage
    assert [type(refusal) for refusal in refusals] == [type(None), Fenced, StoreError, type(None), type(None)]
    assert again == [None, None]
    assert await lab.states([request for request, _ in pairs]) == ["done", "cancelled", "running", "done"]
    assert [await lab.text(output) for _, output in pairs] == ["a", None, None, "d"]
    assert await lab.live(session) == 1
    assert await lab.reader.live() == [pairs[2][0]]
    (hint,) = await lab.hints()
    done = [(pairs[0][0], 0), (pairs[3][0], 3)]
    assert hint["done"] == " ".join(f"{request}:4:{tokens}" for request, tokens in done)
    ((_, event),) = await lab.redis.xrange(lab.keys.events)
    assert (event["event"], event["id"].split(), event["engine"]) == ("done", [request for request, _ in done], "e1")


async def test_more_than_a_call_takes_are_completed(lab: Lab) -> None:
    session = await lab.session()
    given = lab.variable("x")
    outputs = [lab.variable() for _ in range(2 * MAX_COMPLETIONS + 1)]
    requests = [lab.request([given], output) for output in outputs]
    await lab.submit(session, [given, *outputs], requests)
    work = []
    for output, (spec, _) in zip(outputs, requests, strict=True):
        claim = await lab.start(spec.id)
        work.append(Completion(spec.id, claim.fence, output.id, lab.value(spec.id), Usage()))
    assert await lab.engine.complete_many(work) == [None] * len(work)
    assert [o and o.value for o in await lab.reader.outcomes([v.id for v in outputs])] == [c.request for c in work]
    assert len(await lab.hints("resolved")) == 3


@pytest.mark.parametrize("size", [4, 40_000])
async def test_the_same_call_again_changes_nothing(lab: Lab, size: int) -> None:
    request, output = await lab.one(await lab.session())
    claim = await lab.start(request)
    await lab.complete(claim, "x" * size)
    before = await lab.snapshot()
    await lab.complete(claim, "x" * size)
    assert await lab.snapshot() == before
    if size > 4:
        assert await lab.redis.pttl(lab.keys.value(output, claim.fence)) == -1


async def test_a_zombie_is_fenced_out(lab: Lab) -> None:
    request, output = await lab.one(await lab.session())
    zombie = await lab.start(request)
    await lab.expire_lease(request)
    await lab.scheduler.reap()
    for before_redelivery in (True, False):
        before = await lab.snapshot()
        with pytest.raises(Fenced, match=request):
            await lab.complete(zombie, "stale")
        assert await lab.snapshot() == before
        if before_redelivery:
            second = await lab.start(request, "e2")
    await lab.complete(second, "fresh")
    with pytest.raises(Fenced, match="done"):
        await lab.complete(zombie, "stale")
    assert await lab.text(output) == "fresh"


@pytest.mark.parametrize("why", ["cancelled", "unknown", "ready", "another fence"])
async def test_what_is_not_ours_cannot_complete(lab: Lab, why: str) -> None:
    request, output = await lab.one(await lab.session())
    await lab.heartbeat()
    fence = await lab.dispatch(request)
    if why == "cancelled":
        await lab.producer.cancel_requests([request])
    elif why == "ready":
        await lab.engine.release("e1", [(request, fence)])
    elif why == "another fence":
        fence = "2.other"
    name = lab.id("r") if why == "unknown" else request
    with pytest.raises(Fenced, match=name):
        await lab.engine.complete(name, fence, output, lab.value("x"), Usage())
    variable = await lab.reader.variable(output)
    assert variable is not None
    assert variable.value is None


async def test_large_values_and_raw_texts_are_kept(lab: Lab) -> None:
    request, output = await lab.one(await lab.session())
    claim = await lab.start(request)
    settings = lab.partition.settings
    value, raw = (encode_value(c * 50_000, settings, claim.fence) for c in "vr")
    await lab.engine.complete(request, claim.fence, output, value, Usage(), raw)
    variable = await lab.reader.variable(output)
    assert variable is not None
    assert variable.value == "v" * 50_000
    assert variable.raw_fence == claim.fence
    keys = [lab.keys.value(output, claim.fence), lab.keys.value(output, claim.fence + ".raw")]
    assert [await lab.redis.pttl(key) for key in keys] == [-1, -1]
    assert await lab.redis.get(keys[1]) == "r" * 50_000


@pytest.mark.parametrize("lost", ["value", "raw"])
async def test_a_staged_value_that_is_gone_is_an_error(lab: Lab, lost: str) -> None:
    request, output = await lab.one(await lab.session())
    claim = await lab.start(request)
    fences = (claim.fence, "") if lost == "value" else ("", claim.fence)
    before = await lab.snapshot()
    (answers,) = (
        await lab.partition.call(
            "complete", request, claim.fence, "", fences[0], 9, "d", "", "", "{}", 0, "1", "", fences[1]
        )
    )[1:]
    assert answers[0][1:3] == ["StagedValueLost", output]
    assert await lab.snapshot() == before


async def test_an_unexpected_answer_is_a_store_error(lab: Lab) -> None:
    request, output = await lab.one(await lab.session())
    claim = await lab.start(request)
    lost = lab.value("x" * 40_000)
    lab.partition.stage = _never  # type: ignore[method-assign]
    try:
        with pytest.raises(StoreError, match="StagedValueLost"):
            await lab.engine.complete(request, claim.fence, output, lost, Usage())
    finally:
        del lab.partition.stage


async def _never(*args: object, **kwargs: object) -> None:
    """Stage nothing, as if the value had expired before the script came."""


async def test_an_output_that_is_gone_with_its_session_ends_the_request_quietly(lab: Lab) -> None:
    owner, worker = await lab.session(), await lab.session()
    output, given = lab.variable(), lab.variable("x")
    await lab.submit(owner, [output])
    request = lab.request([given], output)
    await lab.submit(worker, [given], [request])
    claim = await lab.start(request[0].id)
    await lab.producer.delete_session(owner)
    value = encode_value("x", lab.partition.settings, claim.fence)
    await lab.engine.complete(claim.request, claim.fence, output.id, value, Usage())
    assert await lab.state(claim.request) == "done"
    assert await lab.reader.variable(output.id) is None
    assert await lab.live(worker) == 0
