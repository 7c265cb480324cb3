from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest
from redis.exceptions import ResponseError

import parrot_mq as P
from parrot_mq.settings import ClientSettings, StoreSettings
from parrot_mq.store import SchedulerStore, Store
from tests.conftest import fake
from tests.sdk.fake_service import Failure, FakeService


@P.semantic_function
def step(text: P.Input, out: P.Output = P.output(max_tokens=4)) -> None:
    """{{text}}:{{out}}"""


@P.semantic_function
def fan_in(a: P.Input, b: P.Input, c: P.Input, merged: P.Output = P.output()) -> None:
    """{{a}}{{b}}{{c}}:{{merged}}"""


def failing_on(text: str, kind: str = "EngineFailed") -> Any:
    def answer(spec: Any, prompt: str) -> str:
        if text in prompt:
            raise Failure(kind, f"the engine gave up on {text}")
        return f"{len(prompt)}"

    return answer


async def test_never_set_and_timeout(session: P.Session, service: FakeService) -> None:
    service.running.clear()
    by_hand, out = session.variable(name="notes"), step("x", session=session)
    with pytest.raises(P.NeverSet, match=r"notes .* is not resolved after 0.1 s: nothing produces it"):
        await by_hand.get(timeout_s=0.1)
    with pytest.raises(P.GetTimeout, match=r"out .* waits for an engine that serves its model") as caught:
        await out.get(timeout_s=0.1)
    assert isinstance(caught.value, TimeoutError)
    service.running.set()
    assert await out.get(timeout_s=10) == "<step.out:2>"


async def test_an_unknown_id_is_waited_for_then_named() -> None:
    async with (
        fake(StoreSettings(want_grace_s=0.2)) as store,
        P.connect(store=store, settings=ClientSettings(recheck_s=0.1)) as client,
    ):
        with pytest.raises(P.UnknownVariable, match="0-v-nobody"):
            await client.variable("0-v-nobody").get()
        with pytest.raises(P.UnknownVariable, match="0-v-nobody"):
            async for _ in client.variable("0-v-nobody").stream():
                pass
        with pytest.raises(P.UnknownVariable):
            await client.variable("0-v-nobody").explain()


async def test_the_chain_goes_from_the_failed_step_to_the_one_asked_for(
    session: P.Session, client: P.Client, service: FakeService
) -> None:
    service.answer = failing_on("bad")
    good, bad = step("good", session=session), step("bad", session=session)
    middle = step(bad, session=session)
    last = fan_in(good, middle, "z", session=session)
    with pytest.raises(
        P.EngineFailed, match=r"gave up on bad \[steps: step.out -> step.out -> fan_in.merged\]"
    ) as ours:
        await last.get(timeout_s=10)
    assert [s.variable for s in ours.value.chain] == [bad.id, middle.id, last.id]
    assert ours.value.record is not None
    assert ours.value.record.engine == "engine-1"
    with pytest.raises(P.EngineFailed) as theirs:
        await client.variable(last.id).get(timeout_s=10)
    assert [(s.request, s.function, s.variable) for s in theirs.value.chain] == [
        (s.request, s.function, s.variable) for s in ours.value.chain
    ]
    with pytest.raises(P.EngineFailed) as again:
        await last
    assert again.value.chain == ours.value.chain


async def test_a_failed_variable_without_a_step(session: P.Session, client: P.Client) -> None:
    by_hand = session.variable(name="notes")
    out = step(by_hand, session=session)
    await by_hand.cancel("gone")
    with pytest.raises(P.Cancelled, match="gone"):
        await out.get(timeout_s=10)
    with pytest.raises(P.Cancelled) as caught:
        await client.variable(out.id).get(timeout_s=10)
    assert [s.variable for s in caught.value.chain] == [out.id]


@pytest.mark.parametrize("kind", ["InvalidRequest", "TransformFailed", "UnknownModel", "Expired", "NewerKind"])
async def test_errors_are_typed(session: P.Session, service: FakeService, kind: str) -> None:
    service.answer = failing_on("bad", kind)
    with pytest.raises(getattr(P, kind, P.EngineFailed)):
        await step("bad", session=session).get(timeout_s=10)


async def test_many_waiters_share_what_they_wait_for(
    session: P.Session, client: P.Client, service: FakeService
) -> None:
    service.running.clear()
    out = step("x", session=session)
    foreign = client.variable(await out.published())
    waits = [asyncio.create_task(v.get(perf, 10)) for v in (out, foreign) for perf in (P.LATENCY, P.THROUGHPUT, None)]
    await asyncio.sleep(0.05)
    waits[0].cancel()
    service.running.set()
    assert await asyncio.gather(*waits[1:]) == ["<step.out:2>"] * 5
    with pytest.raises(asyncio.CancelledError):
        await waits[0]


async def test_a_lost_wake_up_is_made_up_for(session: P.Session, service: FakeService) -> None:
    session.link.hub(0)._waiters.listen(lambda variable_id: None)
    assert await step("x", session=session).get(timeout_s=10) == "<step.out:2>"


async def test_resolved_variables_let_go_of_the_graph(session: P.Session, service: FakeService) -> None:
    first = step("x", session=session)
    last = first
    for _ in range(5):
        last = step(last, session=session)
    await last.get(timeout_s=10)
    await asyncio.sleep(0)
    gc.collect()
    assert last._request is not None
    assert last._request.inputs == ()
    assert not session.link.hub(0)._entries


async def test_nothing_is_left_of_waits_that_ended(session: P.Session, client: P.Client, service: FakeService) -> None:
    service.running.clear()
    out = step("x", session=session)
    with pytest.raises(P.GetTimeout):
        await client.variable(await out.published()).get(timeout_s=0.2)
    hub = session.link.hub(0)
    await asyncio.sleep(0.4)
    assert not hub._entries
    assert [c for c in hub._users if c.endswith(out.id)] == []
    assert [c for c in hub._waiters._channels if c.endswith(out.id)] == []


async def test_gather(session: P.Session, service: FakeService) -> None:
    assert await P.gather() == []
    outs = [step("x" * i, session=session) for i in range(30)]
    texts = await P.gather(outs[0], outs[1:], perf=P.THROUGHPUT, timeout_s=10)
    assert texts == [f"<step.out:{i + 1}>" for i in range(30)]
    assert await P.gather(outs[3], outs[3]) == [texts[3]] * 2
    service.answer = failing_on("bad")
    with pytest.raises(P.EngineFailed, match="bad"):
        await P.gather(step("a", session=session), step("bad", session=session), session.variable(), timeout_s=10)


async def test_gather_names_what_is_missing(session: P.Session, service: FakeService) -> None:
    out, never = step("a", session=session), session.variable(name="never")
    with pytest.raises(P.NeverSet, match="never"):
        await P.gather(out, never, timeout_s=1)


async def test_variables_of_two_clients(session: P.Session, fake_store: Store) -> None:
    async with P.connect(store=fake_store) as other:
        stranger = other.variable(session.variable("x").id)
        with pytest.raises(P.ConfigError, match="2 clients"):
            await P.gather(session.variable("y"), stranger)
        with pytest.raises(P.BadType, match="belongs to another client"):
            step(stranger, session=session)


async def test_first(session: P.Session, service: FakeService) -> None:
    service.answer = failing_on("bad")
    by_hand = [session.variable(name=f"v{i}") for i in range(3)]
    waits = [step(v, session=session) for v in by_hand]
    await by_hand[1].set("now")
    chosen = await P.first(1, waits, timeout_s=10)
    assert list(chosen) == [waits[1]]
    with pytest.raises(P.Cancelled, match="first 1 of its siblings"):
        await waits[0]
    bad, good = step("bad", session=session), step("good", session=session)
    assert list(await P.first(1, bad, good, timeout_s=10)) == [good]
    with pytest.raises(P.EngineFailed):
        await P.first(2, step("bad", session=session), step("good", session=session), timeout_s=10)
    for k in (0, 3):
        with pytest.raises(ValueError, match="k must be from 1"):
            await P.first(k, bad, good)


async def test_an_expired_value(session: P.Session, client: P.Client) -> None:
    variable = session.variable("x" * 40_000)
    await variable.published()
    (key,) = [key async for key in session.link.store.client.scan_iter("*:val:*")]
    await session.link.store.client.delete(key)
    with pytest.raises(P.Expired, match="expired before it was read"):
        await client.variable(variable.id).get(timeout_s=10)


async def test_a_client_that_breaks_tells_everybody(fake_store: Store) -> None:
    client = await P.connect(store=fake_store)
    session = await client.session().open()
    waiting = asyncio.create_task(session.variable().get())
    await asyncio.sleep(0.05)

    async def broken() -> None:
        raise ZeroDivisionError("a bug")

    session.link.spawn(broken())
    with pytest.raises(P.StoreError, match="the client broke: ZeroDivisionError"):
        await waiting
    with pytest.raises(ExceptionGroup, match="unhandled errors"):
        await client.aclose()
    with pytest.raises(P.ConfigError, match="closed"):
        await session.variable().published()


async def test_a_subscription_that_is_never_confirmed(
    session: P.Session, client: P.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hanging(channels: object) -> None:
        await asyncio.Event().wait()

    out = step("x", session=session)
    foreign = client.variable(await out.published())
    monkeypatch.setattr("parrot_mq.sdk.hub.RETRY_S", 0.1)
    monkeypatch.setattr(session.link.hub(0)._waiters, "subscribe", hanging)
    with pytest.raises(P.StoreUnavailable, match="subscription"):
        await foreign.get()
    with pytest.raises(P.StoreUnavailable, match="subscription"):
        async for _ in foreign.stream():
            pass


async def test_a_redis_that_refuses(session: P.Session, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*args: object) -> None:
        raise ResponseError("NOPERM no permissions")

    out = step("x", session=session)
    await out.published()
    monkeypatch.setattr(session.link.hub(0)._producer, "wants", refuse)
    with pytest.raises(P.StoreError, match="Redis refused to answer: NOPERM"):
        await out
    monkeypatch.setattr(session._sender, "send", refuse)
    with pytest.raises(P.StoreError, match="Redis refused the submit: NOPERM"):
        await step("y", session=session)


async def test_a_crowd_of_waiters(session: P.Session, service: FakeService) -> None:
    outs = [step(f"{i}", session=session) for i in range(200)]
    texts = await asyncio.gather(*(out.get(timeout_s=60) for out in outs))
    assert texts == [f"<step.out:{len(str(i)) + 1}>" for i in range(200)]


async def hinted(store: Store) -> list[str]:
    """Return the objectives that the scheduler was told about on their own, after the submit."""
    entries = await SchedulerStore(store.partitions[0]).read_intake("0", block_ms=None)
    told = [entry.fields["objectives"] for entry in entries if entry.kind == "objectives"]
    return [line.partition(" ")[0] for lines in told for line in lines.splitlines()]


async def test_an_objective_goes_out_with_the_submit(
    session: P.Session, service: FakeService, fake_store: Store
) -> None:
    service.running.clear()
    early, late = step("x", session=session), step("y", session=session)
    waiting = [asyncio.create_task(early.get(perf=P.TTFT, timeout_s=10))]
    await late.published()
    assert await early.objective() == P.TTFT
    assert await hinted(fake_store) == []
    waiting.append(asyncio.create_task(late.get(perf=P.THROUGHPUT, timeout_s=10)))
    waiting.append(asyncio.create_task(early.get(perf=P.LATENCY, timeout_s=10)))
    await asyncio.sleep(0.1)
    assert (await early.objective(), await late.objective()) == (P.LATENCY, P.THROUGHPUT)
    assert sorted(await hinted(fake_store)) == sorted([early.id, late.id])
    service.running.set()
    assert len(await asyncio.gather(*waiting)) == 3


async def test_so_does_that_of_a_stream(session: P.Session, service: FakeService, fake_store: Store) -> None:
    out = step("x", session=session)
    assert [piece async for piece in out.stream(timeout_s=10)]
    assert await out.objective() == P.TTFT
    assert await hinted(fake_store) == []
