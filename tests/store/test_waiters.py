"""Waiting: a wake-up promises nothing, and none is missed for good."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio.client import PubSub
from redis.exceptions import ConnectionError as RedisConnectionError

from parrot_mq.settings import StoreSettings
from parrot_mq.store import Waiters, connect
from parrot_mq.store.server import RedisServer
from tests.store.lab import Lab


@contextlib.asynccontextmanager
async def waiting(lab: Lab) -> AsyncIterator[Waiters]:
    waiters = Waiters(lab.partition)
    try:
        yield waiters
    finally:
        await waiters.aclose()


async def woken(event: asyncio.Event, timeout_s: float = 10) -> None:
    await asyncio.wait_for(event.wait(), timeout_s)
    event.clear()


async def test_whoever_watches_is_woken(lab: Lab) -> None:
    session = await lab.session()
    given, other = lab.variable(), lab.variable()
    await lab.submit(session, [given, other])
    async with waiting(lab) as waiters:
        await waiters.subscribe([lab.keys.session_channel(session)])
        with (
            waiters.watching(given.id) as first,
            waiters.watching(given.id) as second,
            waiters.watching(other.id) as elsewhere,
        ):
            await lab.producer.set_variable(given.id, lab.value("x"))
            await woken(first)
            await woken(second)
            assert not elsewhere.is_set()


async def test_one_message_wakes_the_waiters_of_many(lab: Lab) -> None:
    session = await lab.session()
    _, outputs = await lab.chain(session, 3)
    async with waiting(lab) as waiters:
        await waiters.subscribe([lab.keys.session_channel(session)])
        with waiters.watching(outputs[1]) as first, waiters.watching(outputs[2]) as second:
            await lab.producer.cancel_variable(outputs[1])
            await woken(first)
            await woken(second)


async def test_a_foreign_reader_listens_to_the_variable(lab: Lab) -> None:
    given = lab.variable()
    await lab.submit(await lab.session(), [given])
    async with waiting(lab) as waiters:
        await waiters.subscribe([lab.keys.variable_channel(given.id)])
        with waiters.watching(given.id) as event:
            await lab.producer.set_variable(given.id, lab.value("x"))
            await woken(event)


async def test_an_id_that_was_told_beforehand_wakes_when_it_is_submitted(lab: Lab) -> None:
    given = lab.variable("x")
    session = await lab.session()
    async with waiting(lab) as waiters:
        await waiters.subscribe([lab.keys.variable_channel(given.id)])
        with waiters.watching(given.id) as event:
            await lab.submit(session, [given])
            await woken(event)


async def test_a_listener_hears_of_every_variable(lab: Lab) -> None:
    session = await lab.session()
    variables = [lab.variable() for _ in range(3)]
    await lab.submit(session, variables)
    heard: asyncio.Queue[str] = asyncio.Queue()
    async with waiting(lab) as waiters:
        waiters.listen(heard.put_nowait)
        await waiters.subscribe([lab.keys.session_channel(session)])
        for variable in variables:
            await lab.producer.set_variable(variable.id, lab.value("x"))
        assert [await asyncio.wait_for(heard.get(), 10) for _ in variables] == [v.id for v in variables]


async def test_subscribing_twice_waits_for_nothing_new(lab: Lab) -> None:
    async with waiting(lab) as waiters:
        channels = [lab.keys.session_channel("a"), lab.keys.session_channel("b")]
        await waiters.subscribe(channels)
        await asyncio.wait_for(waiters.subscribe([*channels, *channels]), 10)
        assert (await lab.partition.blocking.pubsub_numsub(channels[0]))[0][1] == 1


async def test_a_forgotten_channel_wakes_nobody(lab: Lab) -> None:
    session = await lab.session()
    given, after = lab.variable(), lab.variable()
    await lab.submit(session, [given, after])
    channel, still = lab.keys.session_channel(session), lab.keys.variable_channel(after.id)
    async with waiting(lab) as waiters:
        await waiters.subscribe([channel, still])
        await waiters.unsubscribe(channel)
        await waiters.unsubscribe("never subscribed")
        with waiters.watching(given.id) as event, waiters.watching(after.id) as later:
            await lab.producer.set_variable(given.id, lab.value("x"))
            await lab.producer.set_variable(after.id, lab.value("x"))
            await woken(later)
            assert not event.is_set()
        await waiters.subscribe([channel])  # and can be taken up again
        with waiters.watching(given.id) as event:
            await lab.redis.publish(channel, given.id)
            await woken(event)


async def test_whether_a_channel_is_subscribed_to(lab: Lab) -> None:
    channel = lab.keys.session_channel("a")
    async with waiting(lab) as waiters:
        assert not waiters.is_subscribed(channel)
        subscribing = asyncio.create_task(waiters.subscribe([channel]))
        await asyncio.sleep(0)
        assert not waiters.is_subscribed(channel)  # asked for, not confirmed
        await asyncio.wait_for(subscribing, 10)
        assert waiters.is_subscribed(channel)
        forgetting = asyncio.create_task(waiters.unsubscribe(channel))
        await asyncio.sleep(0)
        assert not waiters.is_subscribed(channel)
        await asyncio.wait_for(waiters.subscribe([channel]), 10)  # before the other has ended
        await forgetting
        assert waiters.is_subscribed(channel)
        with waiters.watching("0-v-a") as event:
            await lab.redis.publish(channel, "0-v-a")
            await woken(event)


async def test_what_nobody_watches_any_more_is_forgotten(lab: Lab) -> None:
    async with waiting(lab) as waiters:
        with waiters.watching("0-v-a"), waiters.watching("0-v-a"):
            assert len(waiters._events) == 1
        assert not waiters._events


# Lost messages


@pytest.mark.redis
async def test_a_silent_reconnect_wakes_everybody(real: Lab) -> None:
    """What was published while the connection was gone is lost; so all have to look again."""
    session = await real.session()
    given = real.variable()
    await real.submit(session, [given])
    heard: asyncio.Queue[str] = asyncio.Queue()
    async with waiting(real) as waiters:
        waiters.listen(heard.put_nowait)
        await waiters.subscribe([real.keys.session_channel(session)])
        with waiters.watching(given.id) as event:
            assert await real.redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub") == 1
            await woken(event)
            assert await asyncio.wait_for(heard.get(), 10) == ""
            await real.producer.set_variable(given.id, real.value("x"))
            await woken(event)


@pytest.mark.redis
async def test_a_subscription_that_fails_is_made_anew(real: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = real.keys.session_channel("a"), real.keys.session_channel("b")
    subscribe, failures = PubSub.subscribe, [RedisConnectionError("gone")] * 2

    async def failing(self: PubSub, *channels: str) -> None:
        if second in channels and failures:
            raise failures.pop()
        await subscribe(self, *channels)

    monkeypatch.setattr(PubSub, "subscribe", failing)
    async with waiting(real) as waiters:
        await waiters.subscribe([first])
        with waiters.watching("0-v-a") as event:
            await asyncio.wait_for(waiters.subscribe([second]), 10)
            await woken(event)  # the first channel was away for a moment
            for channel in (first, second):
                await real.redis.publish(channel, "0-v-a")
                await woken(event)
    assert not failures


@pytest.mark.redis
async def test_a_restart_of_redis_wakes_everybody(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    await server.astart()
    try:
        async with await connect(server.url, StoreSettings()) as store:
            lab = Lab(store)
            session, given = await lab.session(), lab.variable()
            await lab.submit(session, [given])
            async with waiting(lab) as waiters:
                await waiters.subscribe([lab.keys.session_channel(session)])
                with waiters.watching(given.id) as event:
                    server.kill()
                    await asyncio.sleep(3.5)  # longer than the client tries to reconnect by itself
                    late = asyncio.create_task(waiters.subscribe([lab.keys.variable_channel(given.id)]))
                    await asyncio.sleep(0)
                    await server.astart()
                    await woken(event, 20)
                    await asyncio.wait_for(late, 20)
                    await lab.redis.publish(lab.keys.variable_channel(given.id), given.id)
                    await woken(event)
                    await lab.redis.publish(lab.keys.session_channel(session), given.id)
                    await woken(event)
    finally:
        server.stop()


@pytest.mark.redis
async def test_the_first_subscription_may_come_while_redis_is_away(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    await server.astart()
    try:
        async with await connect(server.url, StoreSettings()) as store:
            lab = Lab(store)
            server.kill()
            async with waiting(lab) as waiters:
                subscribing = asyncio.create_task(waiters.subscribe([lab.keys.variable_channel("0-v-a")]))
                await asyncio.sleep(3.5)
                assert not subscribing.done()
                await server.astart()
                await asyncio.wait_for(subscribing, 20)
                with waiters.watching("0-v-a") as event:
                    await lab.redis.publish(lab.keys.variable_channel("0-v-a"), "0-v-a")
                    await woken(event)
    finally:
        server.stop()


async def test_closing_without_having_begun(lab: Lab) -> None:
    waiters = Waiters(lab.partition)
    await waiters.aclose()
    await waiters.aclose()
