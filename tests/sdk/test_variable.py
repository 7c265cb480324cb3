from __future__ import annotations

import asyncio

import pytest

import parrot_mq as P
from parrot_mq.messages import ObjectiveKind, RequestState
from parrot_mq.store.records import DispatchItem
from tests.sdk.fake_service import FakeService


@P.semantic_function
def step(text: P.Input, out: P.Output = P.output(max_tokens=4)) -> None:
    """{{text}}:{{out}}"""


@P.semantic_function
def join(left: P.Input, right: P.Input, out: P.Output = P.output()) -> None:
    """{{left}}+{{right}}={{out}}"""


async def test_values_of_every_size(session: P.Session, service: FakeService) -> None:
    for text in ("", "a\x00b", "\U0001f99c" * 3, "x" * 40_000):
        variable = session.variable(text)
        assert await variable.get() == text
        record = await session.link.reader(variable.id).variable(variable.id)
        assert record is not None
        assert record.value == text


async def test_a_value_that_is_too_large(session: P.Session) -> None:
    with pytest.raises(P.ValueTooLarge):
        session.variable("x" * (8 * 1024 * 1024 + 1))
    variable = session.variable()
    with pytest.raises(P.ValueTooLarge):
        await variable.set("x" * (8 * 1024 * 1024 + 1))


async def test_set(session: P.Session, client: P.Client, service: FakeService) -> None:
    variable = session.variable(name="later")
    out = step(variable, session=session)
    assert await variable.state() == P.VariableState.PENDING
    waiting = asyncio.create_task(client.variable(await variable.published()).get(timeout_s=10))
    await variable.set("now")
    await variable.set("now")
    assert await waiting == "now"
    assert await variable == "now"
    with pytest.raises(P.AlreadySet, match=variable.id):
        await client.variable(variable.id).set("again")
    with pytest.raises(P.AlreadyProduced):
        await client.variable(await step("z", session=session).published()).set("y")
    assert await out.get(timeout_s=10) == "<step.out:4>"


async def test_an_unbound_variable(client: P.Client, service: FakeService) -> None:
    variable = P.SemanticVariable("text", name="v")
    assert "unbound pending" in repr(P.SemanticVariable())
    with pytest.raises(P.ConfigError, match="variable v needs a session"):
        variable.id  # noqa: B018
    async with client.session() as session:
        assert variable.id.startswith("0-v-")
        assert variable.session is session
        with pytest.raises(P.ConfigError, match="bound already"):
            session.adopt(variable)
        assert await variable.state() == P.VariableState.READY
    assert await variable == "text"


async def test_a_variable_of_another_process(session: P.Session, client: P.Client, service: FakeService) -> None:
    service.running.clear()
    out = step("x", session=session)
    foreign = client.variable(await out.published(), name="theirs")
    assert (foreign.session, foreign.call, foreign.name) == (None, None, "theirs")
    waiting = asyncio.create_task(foreign.get(timeout_s=10))
    await asyncio.sleep(0.05)
    service.running.set()
    assert await waiting == "<step.out:2>"
    assert await step(foreign, session=session).get(timeout_s=10) == "<step.out:13>"


async def test_an_id_that_nobody_has_made_yet(session: P.Session, client: P.Client) -> None:
    session._outbox._start = lambda: None  # type: ignore[method-assign]  # as if the submit took its time
    future = session.variable("text")
    waiting = asyncio.create_task(client.variable(future.id).get(perf=P.THROUGHPUT, timeout_s=10))
    await asyncio.sleep(0.15)
    assert not waiting.done()
    del session._outbox._start
    await session.flush()
    assert await waiting == "text"


async def test_ids_are_checked(client: P.Client) -> None:
    for bad in ("x", "0-r-abc", "", "1-v-"):
        with pytest.raises(P.BadType):
            client.variable(bad)
    with pytest.raises(P.ConfigError, match="partition 7"):
        client.variable("7-v-abc")


async def test_primitives(session: P.Session, client: P.Client, service: FakeService) -> None:
    service.running.clear()
    task = session.variable("cats", name="task")
    code = step(task, session=session)
    test = join(task, code, session=session)
    producer = await code.producer()
    assert producer is not None
    assert (producer.function, producer.output, producer.inputs) == ("step", code.id, (task.id,))
    assert await task.producer() is None
    assert {info.output for info in await task.consumers()} == {code.id, test.id}
    assert [info.function for info in await client.variable(code.id).consumers()] == ["join"]
    assert await test.objective() is None
    waiting = asyncio.create_task(test.get(perf=P.Deadline(60), timeout_s=10))
    await asyncio.sleep(0.1)
    objective = await test.objective()
    assert objective is not None
    assert objective.kind is ObjectiveKind.DEADLINE
    service.running.set()
    await waiting
    assert await client.variable(code.id).consumers() == ()


async def test_prefix_hashes(session: P.Session, client: P.Client, service: FakeService) -> None:
    service.running.clear()
    a = join("same", "one", session=session)
    b = join("same", "two", session=session)
    c = join("same", session.variable(), session=session)
    hashes = [await variable.prefix_hash() for variable in (a, b, c)]
    assert [len(h) for h in hashes] == [2, 2, 1]
    assert hashes[0][0] == hashes[1][0] == hashes[2][0]
    assert hashes[0][1] != hashes[1][1]
    assert await client.variable(a.id).prefix_hash() == hashes[0]
    assert await session.variable("x").prefix_hash() == ()
    service.running.set()
    await a
    assert await a.prefix_hash() == hashes[0]
    assert await client.variable(a.id).prefix_hash() == ()


async def test_explain(session: P.Session, service: FakeService) -> None:
    service.running.clear()
    by_hand = session.variable(name="notes")
    first = step("x", session=session)
    last = join(first, by_hand, session=session)
    explanation = await last.explain()
    assert explanation.producer is not None
    assert (explanation.state, explanation.producer.state) == (P.VariableState.PENDING, RequestState.WAITING)
    assert {(w.id, w.producer.function if w.producer else "") for w in explanation.waits_for} == {
        (first.id, "step"),
        (by_hand.id, ""),
    }
    text = str(explanation)
    assert "waits for 2 inputs" in text
    assert "notes" in text
    assert "waits to be set by hand" in text
    assert "ready and waits for an engine" in (await first.explain()).reason
    assert "set by hand" in (await by_hand.explain()).reason
    await by_hand.set("now")
    service.running.set()
    await last.get(timeout_s=10)
    done = await last.explain()
    assert done.reason == "it is ready"
    assert "objective: latency" in str(done)


async def test_explain_on_the_way_and_after_a_failure(session: P.Session, service: FakeService) -> None:
    service.running.clear()
    out = step("x", session=session)
    await out.published()
    producer = await out.producer()
    assert producer is not None
    await service.scheduler.dispatch([DispatchItem(producer.id, "engine-1")], ["t"])
    assert "queued at engine engine-1" in (await out.explain()).reason
    await out.cancel("enough")
    failed = await out.explain()
    assert failed.error is not None
    assert failed.reason == "it failed: enough"


async def test_cancel(session: P.Session, client: P.Client, service: FakeService) -> None:
    service.running.clear()
    first = step("x", session=session)
    last = step(first, session=session)
    assert await client.variable(await first.published()).cancel("not needed")
    with pytest.raises(P.Cancelled, match=r"not needed \[steps: step.out -> step.out\]") as caught:
        await last.get(timeout_s=10)
    assert [step.variable for step in caught.value.chain] == [first.id, last.id]
    assert not await first.cancel()
    by_hand = session.variable()
    assert await by_hand.cancel()
    with pytest.raises(P.Cancelled):
        await by_hand


async def test_cancelling_a_session(session: P.Session, service: FakeService) -> None:
    service.running.clear()
    outs = [step(f"{i}", session=session) for i in range(5)]
    assert await session.cancel("over") == 5
    with pytest.raises(P.Cancelled, match="over"):
        await outs[3]


async def test_deleting_a_session(session: P.Session, client: P.Client, service: FakeService) -> None:
    out = step("x", session=session)
    await out.get(timeout_s=10)
    variable_id = session.variable("y").id
    await session.delete()
    with pytest.raises(P.UnknownVariable):
        await client.variable(variable_id).state()
    assert await out == "<step.out:2>"


async def test_session_variables(session: P.Session, client: P.Client, service: FakeService) -> None:
    task = session.variable("x", name="task")
    out = step(task, session=session)
    again = client.session(tenant="acme", session_id=session.id)
    found = await (await again.open()).variables()
    assert not found
    await session.flush()
    found = await again.variables()
    assert {v.name for v in found.values()} == {"task", "out"}
    assert await found[out.id].get(timeout_s=10) == "<step.out:2>"
    with pytest.raises(P.Conflict):
        await client.session(tenant="other", session_id=session.id).open()
    assert session.id in repr(session)
    assert out.id in repr(out)


async def test_lists(session: P.Session, service: FakeService) -> None:
    outs = P.map(step, ["a", "bb"], session=session)
    assert await outs == ["<step.out:2>", "<step.out:3>"]
    assert outs[-1] is outs[1:][0]
    assert repr(outs) == "<VariableList of 2>"
    assert await P.VariableList([]) == []
    assert await P.VariableList([]).cancel() == 0
    service.running.clear()
    assert await P.map(step, ["c", "d"], session=session).cancel() == 2


@pytest.mark.parametrize(
    ("state", "engine", "need", "reason"),
    [
        (RequestState.WAITING, "", 0, "failed on attempt 2 and waits for its next one"),
        (RequestState.WAITING, "", 3, "waits for 3 inputs"),
        (RequestState.READY, "", 0, "is ready and waits for an engine"),
        (RequestState.QUEUED, "e1", 0, "is queued at engine e1"),
        (RequestState.RUNNING, "e1", 0, "runs on engine e1, attempt 2"),
        (RequestState.CANCELLED, "", 0, "is cancelled"),
    ],
)
def test_reasons(state: RequestState, engine: str, need: int, reason: str) -> None:
    request = P.RequestInfo("0-r-a", "step", "0-c-a", state, engine, 2, need, (), "0-v-a")
    explanation = P.Explanation("0-v-a", "", P.VariableState.PENDING, None, request, (), None)
    assert reason in explanation.reason
    assert str(explanation) == f"0-v-a is pending: {explanation.reason}"
