from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import parrot_mq as P
from parrot_mq.settings import ClientSettings
from parrot_mq.store import Store
from parrot_mq.store.server import RedisServer
from tests.sdk.fake_service import FakeService


@P.semantic_function
def step(text: P.Input, out: P.Output = P.output(max_tokens=4)) -> None:
    """{{text}}:{{out}}"""


@P.semantic_function
def join(left: P.Input, right: P.Input, out: P.Output = P.output()) -> None:
    """{{left}}+{{right}}={{out}}"""


async def lose(store: Store, *patterns: str) -> None:
    """Delete keys, as a Redis does that lost its last second."""
    for pattern in patterns:
        async for key in store.client.scan_iter(pattern):
            await store.client.delete(key)


@pytest.fixture
async def lossy(session: P.Session, service: FakeService) -> AsyncIterator[FakeService]:
    service.running.clear()
    yield service
    service.running.set()


async def test_a_lost_graph_is_submitted_again(session: P.Session, lossy: FakeService) -> None:
    by_hand = session.variable("x" * 40_000, name="large")
    first = step("text", session=session)
    last = join(step(first, session=session), by_hand, session=session)
    waiting = asyncio.create_task(last.get(timeout_s=20))
    await asyncio.sleep(0.1)
    await lose(session.link.store, "*:var:*", "*:req:*", "*:live", "*:val:*", "*:ids")
    lossy._ready.clear()
    await asyncio.sleep(0.6)
    lossy.running.set()
    assert await waiting == f"<join.out:{len('<step.out:13>') + 40_000 + 2}>"


async def test_values_that_were_seen_are_not_computed_again(session: P.Session, lossy: FakeService) -> None:
    lossy.running.set()
    first = step("text", session=session)
    assert await first.get(timeout_s=10) == "<step.out:5>"
    lossy.running.clear()
    last = step(first, session=session)
    await session.flush()
    await lose(session.link.store, "*:var:*", "*:req:*", "*:live")
    lossy.prompts.clear()
    lossy._ready.clear()
    waiting = asyncio.create_task(last.get(timeout_s=20))
    await asyncio.sleep(0.5)
    lossy.running.set()
    assert await waiting == "<step.out:13>"
    assert set(lossy.prompts) == {last.id}


async def test_only_the_lost_part_is_submitted_again(session: P.Session, lossy: FakeService) -> None:
    first = step("text", session=session)
    last = step(first, session=session)
    await session.flush()
    producer = await last.producer()
    assert producer is not None
    await lose(session.link.store, f"*:var:{last.id}", f"*:req:{producer.id}")
    batches = len(lossy.batches)
    waiting = asyncio.create_task(last.get(timeout_s=20))
    await asyncio.sleep(0.3)
    lossy.running.set()
    assert await waiting == "<step.out:13>"
    assert len(lossy.batches) <= batches + 2
    assert sorted(lossy.prompts) == sorted([first.id, last.id])


async def test_a_lost_producer_of_a_variable_made_before(session: P.Session, lossy: FakeService) -> None:
    made = session.variable(name="made")
    await made.published()
    step("x", out=made, session=session)
    following = step(made, session=session)
    await session.flush()
    producer = await made.producer()
    assert producer is not None
    await lose(session.link.store, f"*:req:{producer.id}", f"*:var:{following.id}")
    await session.link.store.client.hdel(session.link.store.partition(0).keys.variable(made.id), "producer")
    lossy._ready.clear()
    waiting = asyncio.create_task(following.get(timeout_s=20))
    await asyncio.sleep(0.3)
    lossy.running.set()
    assert await waiting == "<step.out:13>"


async def test_a_session_that_has_ended_is_not_made_again(
    session: P.Session, client: P.Client, lossy: FakeService
) -> None:
    out = step("x", session=session)
    await session.flush()
    await session._producer.delete_session(session.id)
    with pytest.raises(P.UnknownSession, match="has expired or was deleted"):
        await out.get(timeout_s=20)
    with pytest.raises(P.UnknownSession):
        async for _ in step("y", session=session).stream(timeout_s=5):
            pass


@pytest.mark.redis
async def test_a_redis_that_lost_everything(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Killed and started again without its data: the session is opened again under its id, and the graph runs."""
    with RedisServer(tmp_path_factory.mktemp("first")) as server:
        settings = ClientSettings(recheck_s=0.3)
        async with P.connect(server.url, settings=settings) as client, client.session() as session:
            first = step("text")
            last = step(first)
            await session.flush()
            waiting = asyncio.create_task(last.get(timeout_s=60))
            await asyncio.sleep(0.2)
            await client.store.client.flushall()
            session._run_id = "of another server"  # as after a restart
            async with FakeService(client.store).serving():
                assert await waiting == "<step.out:13>"


async def test_a_stream_of_what_was_lost(session: P.Session, lossy: FakeService) -> None:
    out = step("text", session=session)
    await session.flush()
    await lose(session.link.store, "*:var:*", "*:req:*", "*:live")
    lossy._ready.clear()
    lossy.running.set()
    assert "".join([piece async for piece in out.stream(timeout_s=20)]) == "<step.out:5>"


async def test_a_stream_of_what_is_not_made_yet(session: P.Session, client: P.Client, lossy: FakeService) -> None:
    session._outbox._start = lambda: None  # type: ignore[method-assign]  # as if the submit took its time
    out = step("text", session=session)

    async def read() -> str:
        return "".join([piece async for piece in client.variable(out.id).stream(timeout_s=20)])

    reading = asyncio.create_task(read())
    await asyncio.sleep(0.15)
    del session._outbox._start
    await session.flush()
    lossy.running.set()
    assert await reading == "<step.out:5>"


@pytest.mark.redis
async def test_a_redis_that_is_killed_and_started_again(tmp_path: Path) -> None:
    """Waits and streams go on; what its last second held is submitted again."""
    with RedisServer(tmp_path) as server:
        async with P.connect(server.url, settings=ClientSettings(recheck_s=0.3)) as client, client.session() as session:
            first = step("text")
            last = step(first)
            await session.flush()
            waiting = asyncio.create_task(last.get(timeout_s=60))
            await asyncio.sleep(0.1)
            await asyncio.to_thread(server.kill)
            await asyncio.sleep(0.1)
            late = step("more")
            await server.astart()
            async with FakeService(client.store).serving():
                assert await waiting == "<step.out:13>"
                assert await late.get(timeout_s=60) == "<step.out:5>"


@pytest.mark.redis
async def test_a_redis_that_stays_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parrot_mq.store.partition.RETRY_S", 0.2)
    with RedisServer(tmp_path) as server:
        async with P.connect(server.url, settings=ClientSettings(recheck_s=0.1)) as client, client.session() as session:
            out = step("text")
            await session.flush()
            waiting = asyncio.create_task(out.get(timeout_s=60))
            await asyncio.sleep(0.1)
            await asyncio.to_thread(server.kill)
            with pytest.raises(P.StoreUnavailable):
                await waiting
            with pytest.raises(P.StoreUnavailable):
                await step("more").get(timeout_s=60)
            with pytest.raises(P.StoreUnavailable):
                await out.explain()
