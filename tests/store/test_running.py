"""Renewing leases and streaming pieces."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from parrot_mq.errors import Fenced
from parrot_mq.store import streams
from parrot_mq.store.emission import MAX_CHARACTERS, MAX_PIECES, Emission
from parrot_mq.store.engine import Renewal
from parrot_mq.store.partition import Partition
from parrot_mq.store.streams import read_streams
from tests.store.lab import Lab


async def test_renewing_extends_the_lease(lab: Lab) -> None:
    request, _ = await lab.one(await lab.session())
    claim = await lab.start(request)
    await lab.expire_lease(request)
    assert await lab.engine.renew("e1", [(request, claim.fence)]) == Renewal((), ())
    assert await lab.redis.zscore(lab.keys.leases, request) > await lab.scheduler.partition.now_ms()
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


async def test_pieces_of_several_go_in_one_call_each_by_itself(lab: Lab) -> None:
    """Two sessions' outputs, one of which was cancelled, and one of whose pieces is there already."""
    sessions = [await lab.session(), await lab.session()]
    pairs = [await lab.one(session) for session in (*sessions, *sessions)]
    claims = [await lab.start(request) for request, _ in pairs]
    await lab.producer.cancel_requests([pairs[1][0]])
    pieces = [Emission(claim.request, claim.fence, 0, (1, 2), text) for claim, text in zip(claims, "abcd", strict=True)]
    await lab.engine.emit(claims[2].request, claims[2].fence, 0, (1, 2), "c")
    async with lab.partition.blocking.pubsub() as pubsub:
        channels = [lab.keys.session_channel(session) for session in sessions]
        await pubsub.subscribe(*channels)
        heard: dict[str, str] = {}
        async with asyncio.timeout(10):
            for _ in channels:  # until they are confirmed: a message before that is nobody's
                while await pubsub.get_message(timeout=1) is None:
                    pass
            refusals = await lab.engine.emit_many(pieces)
            while len(heard) < 2:
                if message := await pubsub.get_message(ignore_subscribe_messages=True, timeout=1):
                    heard[message["channel"]] = message["data"]
    assert [type(refusal) for refusal in refusals] == [type(None), Fenced, type(None), type(None)]
    assert heard == {channels[0]: pairs[0][1], channels[1]: pairs[3][1]}
    found = [await lab.reader.pieces(output) for _, output in pairs]
    assert [[piece.text for piece in stream if not piece.last] for stream in found] == [["a"], [], ["c"], ["d"]]


async def test_more_pieces_than_a_call_takes(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """In calls that are bounded by their number, and by the size of their texts."""
    session = await lab.session()
    pairs = [await lab.one(session) for _ in range(MAX_PIECES + 2)]
    claims = [await lab.start(request) for request, _ in pairs]
    texts = ["x" * (MAX_CHARACTERS + 1), "y" * MAX_CHARACTERS, *("z" for _ in range(MAX_PIECES))]
    pieces = [Emission(claim.request, claim.fence, 0, (), text) for claim, text in zip(claims, texts, strict=True)]
    call, sizes = Partition.call, []

    async def counted(partition: Partition, name: str, *args: str | int | float) -> Any:
        sizes.append(len(args) // len(pieces[0].to_args()))
        return await call(partition, name, *args)

    with monkeypatch.context() as patched:
        patched.setattr(Partition, "call", counted)
        assert await lab.engine.emit_many(pieces) == [None] * len(pieces)
    assert sizes == [1, 1, MAX_PIECES]
    assert [(await lab.reader.pieces(output))[0].text for _, output in pairs] == texts


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


async def test_many_streams_are_read_in_one_call(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """What came after a place, with the state; a call gives a bounded number of pieces, and says if there are more."""
    pairs = [await lab.one(await lab.session()) for _ in range(3)]
    claims = [await lab.start(request) for request, _ in pairs]
    for claim, text in zip(claims, "abc", strict=True):
        for at in range(3):
            await lab.engine.emit(claim.request, claim.fence, at, [at], text * (at + 1))
    outputs = [output for _, output in pairs]
    await lab.complete(claims[1])
    unknown = lab.id("v")
    whole = await read_streams(lab.partition, [*((output, "0") for output in outputs), (unknown, "0")])
    assert [part.state for part in whole] == ["pending", "ready", "pending", None]
    assert not any(part.is_cut for part in whole)
    assert [list(part.pieces) for part in whole] == [await lab.reader.pieces(i) for i in (*outputs, unknown)]
    assert [piece.text for piece in whole[0].pieces] == ["a", "aa", "aaa"]
    after = whole[2].pieces[0].entry_id
    monkeypatch.setattr(streams, "MAX_PIECES", 4)
    first, second, third = await read_streams(
        lab.partition, [(outputs[2], after), (outputs[0], "0"), (outputs[1], "0")]
    )
    assert ([piece.text for piece in first.pieces], first.is_cut) == (["cc", "ccc"], False)
    assert ([piece.text for piece in second.pieces], second.is_cut) == (["a", "aa"], True)
    assert (third.pieces, third.is_cut, third.state) == ((), True, "ready")
    monkeypatch.setattr(streams, "MAX_STREAMS", 1)
    assert await read_streams(lab.partition, [(output, "0") for output in outputs]) == whole[:3]
