"""Renewing leases and streaming pieces."""

from __future__ import annotations

import asyncio

import pytest

from parrot_mq.errors import Fenced
from parrot_mq.store.engine import Renewal
from tests.store.lab import Lab


async def test_renewing_extends_the_lease(lab: Lab) -> None:
    request, _ = await lab.one(await lab.session())
    claim = await lab.start(request)
    await lab.expire_lease(request)
    assert await lab.engine.renew("e1", [(request, claim.fence)]) == Renewal((), ())
    assert await lab.redis.zscore(lab.keys.leases, request) > await lab.scheduler.now_ms()
    await lab.scheduler.reap()
    assert await lab.state(request) == "running"


async def test_renewing_says_what_is_lost_and_what_was_cancelled(lab: Lab) -> None:
    session = await lab.session()
    requests = [(await lab.one(session))[0] for _ in range(6)]
    claims = [await lab.start(request) for request in requests[:5]]
    queued = await lab.dispatch(requests[5])
    running, cancelled, lost, done, other_fence = claims
    await lab.producer.cancel_requests([cancelled.request])
    await lab.expire_lease(lost.request)
    await lab.scheduler.reap()
    await lab.complete(done)
    held = [(c.request, c.fence) for c in (running, cancelled, lost, done)]
    held += [(other_fence.request, "0.old"), (requests[5], queued), (lab.id("r"), "1.x")]
    renewal = await lab.engine.renew("e1", held)
    assert renewal.cancelled == (cancelled.request,)
    assert renewal.lost == (lost.request, done.request, other_fence.request, held[-1][0])
    assert await lab.engine.renew("e1", []) == Renewal((), ())


async def test_pieces_arrive_in_order_and_wake_readers(lab: Lab) -> None:
    session = await lab.session()
    request, output = await lab.one(session)
    claim = await lab.start(request)
    async with lab.partition.blocking.pubsub() as pubsub:
        channels = {lab.keys.session_channel(session), lab.keys.variable_channel(output)}
        await pubsub.subscribe(*channels)
        await lab.engine.emit(request, claim.fence, 0, [1, 2], "Hé")
        heard = set()
        async with asyncio.timeout(10):
            while heard != channels:
                message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=1)
                if message:
                    heard.add(message["channel"])
    await lab.engine.emit(request, claim.fence, 2, [], "")
    await lab.engine.emit(request, claim.fence, 2, [3], "llo\0")
    first, second, third = await lab.reader.pieces(output)
    assert (first.offset, first.token_ids, first.text, first.fence) == (0, (1, 2), "Hé", claim.fence)
    assert (second.token_ids, third.token_ids, third.text) == ((), (3,), "llo\0")
    assert await lab.reader.pieces(output, after=second.entry_id) == [third]
    assert await lab.reader.pieces(output, count=1) == [first]
    assert 0 < await lab.redis.pttl(lab.keys.tokens(output)) <= 300_000


async def test_the_same_piece_again_is_none(lab: Lab) -> None:
    request, output = await lab.one(await lab.session())
    claim = await lab.start(request)
    for _ in range(2):
        await lab.engine.emit(request, claim.fence, 0, [1], "a")
    for _ in range(2):
        await lab.engine.emit(request, claim.fence, 1, [2], "b")
    assert [piece.text for piece in await lab.reader.pieces(output)] == ["a", "b"]


@pytest.mark.parametrize("why", ["not started", "lost", "done", "unknown"])
async def test_only_the_owner_may_emit(lab: Lab, why: str) -> None:
    request, output = await lab.one(await lab.session())
    await lab.heartbeat()
    if why == "not started":
        fence = await lab.dispatch(request)
    else:
        claim = await lab.start(request)
        fence = claim.fence
        if why == "lost":
            await lab.expire_lease(request)
            await lab.scheduler.reap()
            await lab.start(request, "e2")
        elif why == "done":
            await lab.complete(claim)
        else:
            request = lab.id("r")
    with pytest.raises(Fenced, match=request):
        await lab.engine.emit(request, fence, 0, [1], "a")
    assert await lab.reader.pieces(output) == []


async def test_the_stream_of_a_resolved_variable_is_closed(lab: Lab) -> None:
    request, output = await lab.one(await lab.session())
    await lab.producer.want(output, stream=True)
    claim = await lab.start(request)
    await lab.engine.emit(request, claim.fence, 0, [1], "a")
    await lab.complete(claim)
    assert [piece.last for piece in await lab.reader.pieces(output)] == [False, True]
    other, errored = await lab.one(await lab.session())
    await lab.producer.want(errored, stream=True)
    await lab.producer.cancel_requests([other])
    (piece,) = await lab.reader.pieces(errored)
    assert piece.last
    assert 0 < await lab.redis.pttl(lab.keys.tokens(errored)) <= 300_000
