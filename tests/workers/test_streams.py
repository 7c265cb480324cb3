"""Streamed outputs: from the start, asked for late, and continued after a retry."""

from __future__ import annotations

import asyncio
from typing import Any

from parrot_mq.store.records import TokenPiece

SAMPLING = {"max_tokens": 12, "seed": 7}


def joined(pieces: list[TokenPiece]) -> str:
    return "".join(piece.text for piece in pieces)


def assert_contiguous(pieces: list[TokenPiece], num_tokens: int) -> None:
    """Every token is there once, in order."""
    at = 0
    for piece in pieces:
        if piece.last:
            continue
        assert piece.offset == at
        at += len(piece.token_ids)
    assert at == num_tokens


async def test_an_output_is_streamed_from_the_start(
    desk: Any, open_store: Any, working: Any, gated: Any, eventually: Any
) -> None:
    engine = gated()
    async with working(open_store, lambda: engine, emit_interval_ms=1.0) as worker:
        asked = await desk.ask("Tell", sampling=SAMPLING)
        await desk.producer.want(asked.output, stream=True)
        await desk.dispatch(asked, worker.engine_id)
        engine.permit(3)
        begun = await desk.streamed(asked)
        assert begun
        assert (await desk.request(asked)).state == "running"
        engine.permit()
        value = await desk.resolved(asked)
        pieces = await desk.reader.pieces(asked.output)
        assert joined(pieces) == value.value
        assert value.value.startswith(begun)
        assert pieces[-1].last
        assert len(pieces) > 2
        assert_contiguous(pieces, 12)
        assert [i for piece in pieces for i in piece.token_ids] == list(value.token_ids)


async def test_a_stream_asked_for_late_begins_with_everything_so_far(
    desk: Any, open_store: Any, working: Any, gated: Any, eventually: Any
) -> None:
    engine = gated()
    async with working(open_store, lambda: engine, heartbeat_s=0.02) as worker:
        asked = await desk.ask("Tell", sampling=SAMPLING, dispatch_to=worker.engine_id)
        await desk.until(asked, "running")
        engine.permit(5)

        async def five_tokens() -> bool:
            return engine.stats().num_generated_tokens == 5

        await eventually(five_tokens)
        assert await desk.reader.pieces(asked.output) == []
        await desk.producer.want(asked.output, stream=True)
        await desk.streamed(asked)
        assert (await desk.reader.pieces(asked.output))[0].token_ids[:4]
        engine.permit()
        value = await desk.value(asked)
        pieces = await desk.reader.pieces(asked.output)
        assert joined(pieces) == value
        assert_contiguous(pieces, 12)


async def test_an_output_nobody_asked_to_stream_leaves_no_pieces(desk: Any, open_store: Any, working: Any) -> None:
    async with working(open_store) as worker:
        asked = await desk.ask("Tell", sampling=SAMPLING, dispatch_to=worker.engine_id)
        await desk.value(asked)
        assert await desk.reader.pieces(asked.output) == []


async def test_tokens_of_a_fast_engine_are_joined(desk: Any, open_store: Any, working: Any) -> None:
    async with working(open_store, emit_interval_ms=10_000.0) as worker:
        asked = await desk.ask("Tell", sampling={"max_tokens": 200})
        await desk.producer.want(asked.output, stream=True)
        await desk.dispatch(asked, worker.engine_id)
        value = await desk.value(asked)
        pieces = await desk.reader.pieces(asked.output)
        assert joined(pieces) == value
        assert len(pieces) < 20


async def test_a_retry_goes_on_where_the_stream_stopped(
    desk: Any, open_store: Any, working: Any, gated: Any, eventually: Any
) -> None:
    asked = await desk.ask("Tell", sampling=SAMPLING)
    await desk.producer.want(asked.output, stream=True)
    first = gated()
    async with working(open_store, lambda: first, emit_interval_ms=1.0) as worker:
        await desk.dispatch(asked, worker.engine_id)
        first.permit(4)
        await desk.streamed(asked)
        worker.stop(now=True)
        await desk.until(asked, "ready")  # given back; its stream stands
        first.permit()
    published = await desk.reader.pieces(asked.output)
    second = gated()
    second.permit()
    async with working(open_store, lambda: second) as worker:
        await desk.dispatch(asked, worker.engine_id)
        value = await desk.resolved(asked)
    ids = [i for piece in published for i in piece.token_ids]
    assert 1 <= len(ids) <= 4
    assert list(second.added[0].forced_ids) == ids
    pieces = await desk.reader.pieces(asked.output)
    assert pieces[: len(published)] == published
    assert_contiguous(pieces, 12)
    assert joined(pieces) == value.value


async def test_stop_strings_are_never_streamed(desk: Any, open_store: Any, working: Any) -> None:
    async with working(open_store, emit_interval_ms=0.0) as worker:
        asked = await desk.ask("echo:one two END of it", sampling={"stop": ["END of"], "max_tokens": 20})
        await desk.producer.want(asked.output, stream=True)
        await desk.dispatch(asked, worker.engine_id)
        value = await desk.resolved(asked)
        assert value.value == "one two "
        assert value.token_ids == ()
        assert joined(await desk.reader.pieces(asked.output)) == "one two "


async def test_streams_of_many_requests_do_not_mix(desk: Any, open_store: Any, working: Any) -> None:
    async with working(open_store, emit_interval_ms=0.0) as worker:
        asked = [await desk.ask(f"echo:{n} {n} {n}") for n in range(20)]
        for one in asked:
            await desk.producer.want(one.output, stream=True)
        await asyncio.gather(*(desk.dispatch(one, worker.engine_id) for one in asked))
        for n, one in enumerate(asked):
            assert await desk.value(one) == f"{n} {n} {n}"
            assert joined(await desk.reader.pieces(one.output)) == f"{n} {n} {n}"
