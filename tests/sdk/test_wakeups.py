"""No wake-up is lost, though a wait for what a submit has just made does not read the state first.

The states are not read again by themselves here (``recheck_s``), so that a lost wake-up makes a test time out.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
import redis

import parrot_mq as P
from parrot_mq.messages import VariableState
from parrot_mq.sdk.hub import Hub
from parrot_mq.settings import ClientSettings
from parrot_mq.store import Store, connect
from parrot_mq.store.reader import Reader
from parrot_mq.store.waiters import Waiters
from tests.sdk.fake_service import FakeService, eventually

SETTINGS = ClientSettings(recheck_s=600, submit_chunk=4)


@P.semantic_function
def step(text: P.Input, out: P.Output = P.output(max_tokens=4)) -> None:
    """{{text}}:{{out}}"""


@pytest.fixture
async def client(fake_store: Store) -> AsyncIterator[P.Client]:
    async with P.connect(store=fake_store, settings=SETTINGS) as connected:
        yield connected


@pytest.fixture
def state_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids whose states were read before they were waited for."""
    seen: list[str] = []
    states = Reader.states

    async def counted(self: Reader, ids: Sequence[str]) -> list[VariableState | None]:
        seen.extend(ids)
        return await states(self, ids)

    monkeypatch.setattr(Reader, "states", counted)
    return seen


def hub_of(session: P.Session) -> Hub:
    return session.link.hub(session.partition_number)


async def subscribed(session: P.Session) -> None:
    """Have the session's channel subscribed to, and nothing read for it."""
    hub = hub_of(session)
    await hub._subscribe([session.channel])
    assert hub.is_subscribed(session.channel)


async def test_what_a_watched_submit_makes_is_not_read_first(
    session: P.Session, service: FakeService, state_reads: list[str]
) -> None:
    first = step("x", session=session)
    assert await first.get(timeout_s=10) == "<step.out:2>"
    assert state_reads == [first.id]  # its channel was subscribed to while the submit was on its way
    assert await step("xy", session=session).get(timeout_s=10) == "<step.out:3>"
    assert await P.gather([step(f"{i}", session=session) for i in range(20)], timeout_s=10)
    assert state_reads == [first.id]


async def test_results_that_come_before_the_submit_is_confirmed(
    session: P.Session, service: FakeService, state_reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their waiters take them, and hand them on once all that was called with them is there."""
    await subscribed(session)
    go_on, submit = asyncio.Event(), session._producer.submit

    async def slow(*args: object, last: bool, **kwargs: object) -> None:
        if last:
            await go_on.wait()
        await submit(*args, last=last, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(session._producer, "submit", slow)
    outs = [step(f"{i}", session=session) for i in range(6)]
    waits = [asyncio.create_task(out.get(timeout_s=10)) for out in outs]
    has_come = await eventually(lambda: outs[3]._text is not None)
    early = [wait for wait in waits if wait.done()]
    go_on.set()
    assert await asyncio.gather(*waits) == ["<step.out:2>"] * 6
    assert has_come
    assert early == []
    assert state_reads == []
    assert not hub_of(session)._entries


async def test_a_new_connection_while_the_submit_is_on_its_way(
    session: P.Session, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All is read again then: what Redis does not know yet is not taken for lost, and not submitted again."""
    await subscribed(session)
    go_on, submit = asyncio.Event(), session._producer.submit

    async def slow(*args: object, **kwargs: object) -> None:
        await go_on.wait()
        await submit(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(session._producer, "submit", slow)
    out = step("x", session=session)
    waiting = asyncio.create_task(out.get(timeout_s=10))
    await asyncio.sleep(0.05)
    hub_of(session)._waiters._wake_all()
    await asyncio.sleep(0.05)
    is_waited_for = out.id in hub_of(session)._entries
    go_on.set()
    assert await waiting == "<step.out:2>"
    assert is_waited_for
    assert len(service.batches) == 1


async def test_a_submit_that_is_refused_after_a_result_has_come(
    session: P.Session, client: P.Client, service: FakeService
) -> None:
    await subscribed(session)
    outs = [step(f"{i}", session=session) for i in range(4)]
    bad = step(client.variable("0-v-nobody"), session=session)
    waits = [asyncio.create_task(out.get(timeout_s=10)) for out in (*outs, bad)]
    for wait in waits:
        with pytest.raises(P.UnknownVariable, match="0-v-nobody"):
            await wait
    with pytest.raises(P.UnknownVariable, match="0-v-nobody"):
        await outs[0].get()
    assert not hub_of(session)._entries


async def test_a_wait_that_begins_while_the_submit_is_on_its_way(
    session: P.Session, service: FakeService, state_reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result may have been told before anybody listened."""
    await subscribed(session)
    answered, submit = asyncio.Event(), session._producer.submit

    async def late_answer(*args: object, **kwargs: object) -> None:
        await submit(*args, **kwargs)  # type: ignore[arg-type]
        await answered.wait()

    monkeypatch.setattr(session._producer, "submit", late_answer)
    out = step("x", session=session)
    assert await eventually(lambda: out.id in service.prompts)
    await asyncio.sleep(0.05)  # its message comes, and is for nobody
    waiting = asyncio.create_task(out.get(perf=None, timeout_s=10))
    await asyncio.sleep(0)
    answered.set()
    assert await waiting == "<step.out:2>"
    assert state_reads == [out.id]


async def test_a_variable_that_an_earlier_submit_made(
    session: P.Session, client: P.Client, service: FakeService, state_reads: list[str]
) -> None:
    await subscribed(session)
    by_hand, made = session.variable(name="by_hand"), session.variable(name="made")
    await made.published()
    await client.variable(by_hand.id).set("text")
    step("x", out=made, session=session)
    assert await P.gather(by_hand, made, perf=None, timeout_s=10) == ["text", "<step.out:2>"]
    assert sorted(state_reads) == sorted([by_hand.id, made.id])


async def test_a_variable_that_another_client_sets(session: P.Session, client: P.Client) -> None:
    await subscribed(session)
    variable = session.variable(name="later")
    waiting = asyncio.create_task(variable.get(timeout_s=10))
    foreign = client.variable(await variable.published())
    await foreign.set("text")
    assert await waiting == "text"


async def test_a_reader_of_the_id_who_came_first(
    session: P.Session, client: P.Client, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    await subscribed(session)
    go_on, submit = asyncio.Event(), session._producer.submit

    async def slow(*args: object, **kwargs: object) -> None:
        await go_on.wait()
        await submit(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(session._producer, "submit", slow)
    out, bad = step("x", session=session), step(client.variable("0-v-nobody"), session=session)
    reading = [asyncio.create_task(client.variable(v.id).get(timeout_s=20)) for v in (out, bad)]
    await asyncio.sleep(0.3)  # they have looked for it in vain
    waiting = [asyncio.create_task(v.get(timeout_s=20)) for v in (out, bad)]
    await asyncio.sleep(0.3)
    assert not any(task.done() for task in (*reading, *waiting))
    go_on.set()
    for task in (*reading, *waiting):
        with pytest.raises(P.UnknownVariable):
            await task


async def test_a_session_that_was_let_go_of_is_read_again(
    session: P.Session, service: FakeService, state_reads: list[str]
) -> None:
    """Its channel is unsubscribed from, and subscribed to again for the next wait."""
    assert await step("x", session=session).get(timeout_s=10)
    await session.detach()
    hub_of(session)._work.set()
    assert await eventually(lambda: not hub_of(session).is_subscribed(session.channel))
    out = step("xy", session=session)
    assert await out.get(timeout_s=10) == "<step.out:3>"
    assert out.id in state_reads


async def test_a_channel_that_is_wanted_again_stays(session: P.Session, service: FakeService) -> None:
    """It was to be unsubscribed from when the next wait for it began."""
    hub = hub_of(session)
    assert await step("x", session=session).get(timeout_s=10)
    channels = [f"{session.channel}-{i}" for i in range(3)]
    await hub._subscribe(channels)
    for channel in (*channels, session.channel):
        if channel != session.channel:
            hub.acquire(channel)
        hub.release(channel)
    hub._unused = dict.fromkeys((*channels, session.channel)).keys()  # type: ignore[assignment]  # that one last
    unsubscribe = hub._waiters.unsubscribe
    asked: list[str] = []

    async def slow(channel: str) -> None:
        if not asked:
            hub.acquire(session.channel)
        asked.append(channel)
        await unsubscribe(channel)

    hub._waiters.unsubscribe = slow  # type: ignore[method-assign]
    await hub._round()
    assert asked == channels
    assert hub.is_subscribed(session.channel)


# A connection that is killed


@pytest.fixture
async def real(redis_url: str) -> AsyncIterator[tuple[P.Client, FakeService]]:
    async with (
        await connect(redis_url) as store,
        FakeService(store).serving() as service,
        P.connect(redis_url, settings=SETTINGS) as client,
    ):
        yield client, service


def kill_subscriptions(url: str) -> None:
    """Kill the one connection that listens, without a turn of the loop in which that could be noticed."""
    with redis.Redis.from_url(url) as operator:
        assert operator.execute_command("CLIENT", "KILL", "TYPE", "pubsub") == 1


@pytest.fixture
def reconnect(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Connections that broke are made anew while this is set."""
    may, subscribe_anew = asyncio.Event(), Waiters._subscribe_anew

    async def late(self: Waiters) -> None:
        await may.wait()
        await subscribe_anew(self)

    monkeypatch.setattr(Waiters, "_subscribe_anew", late)
    return may


@pytest.mark.redis
@pytest.mark.parametrize("is_before", [True, False], ids=["before the submit", "after it"])
async def test_a_result_that_comes_while_nobody_listens(
    real: tuple[P.Client, FakeService],
    redis_url: str,
    reconnect: asyncio.Event,
    state_reads: list[str],
    is_before: bool,
) -> None:
    client, service = real
    async with client.session() as session:
        assert await step("x").get(timeout_s=10)
        service.running.clear()
        if is_before:
            kill_subscriptions(redis_url)
            assert hub_of(session).is_subscribed(session.channel)  # as far as anybody knows
        outs = [step(f"{i}") for i in range(10)]
        waits = [asyncio.create_task(out.get(timeout_s=20)) for out in outs]
        await session.flush()
        if not is_before:
            kill_subscriptions(redis_url)
        service.running.set()
        assert await eventually(lambda: len(service.prompts) == 11)
        await asyncio.sleep(0.05)
        early = [wait for wait in waits if wait.done()]
        reconnect.set()
        assert await asyncio.gather(*waits) == ["<step.out:2>"] * 10
        assert early == []  # their messages were lost
        assert not {out.id for out in outs} & set(state_reads)  # it was the confirmation that had them read


@pytest.mark.redis
async def test_connections_killed_all_the_time(real: tuple[P.Client, FakeService], redis_url: str) -> None:
    client, _ = real
    kills = 0
    async with client.session() as session:
        assert await step("x").get(timeout_s=10)
        with redis.Redis.from_url(redis_url) as operator:
            for n in range(30):
                waits = [asyncio.create_task(step(f"{n} {i}").get(timeout_s=20)) for i in range(10)]
                await asyncio.sleep(0.002 * (n % 5))
                kills += operator.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
                assert len(await asyncio.gather(*waits)) == 10
        assert not hub_of(session)._entries
    assert kills >= 10
