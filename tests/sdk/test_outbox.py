from __future__ import annotations

import asyncio
import threading

import pytest

import parrot_mq as P
from parrot_mq.settings import ClientSettings, StoreSettings
from parrot_mq.store import Store
from tests.conftest import fake
from tests.sdk.fake_service import FakeService, eventually


@P.semantic_function
def step(text: P.Input, out: P.Output = P.output(max_tokens=4)) -> None:
    """{{text}}:{{out}}"""


async def test_calls_between_two_awaits_go_out_together(session: P.Session, service: FakeService) -> None:
    a = step("x", session=session)
    b = step(a, session=session)
    assert await b.get(timeout_s=10)
    c = step(b, session=session)
    assert await c.get(timeout_s=10)
    assert len(service.batches) == 2


async def test_calls_go_out_by_themselves(session: P.Session, service: FakeService) -> None:
    out = step("x", session=session)
    assert await eventually(lambda: out.id in service.prompts)


async def test_leaving_a_session_waits_for_the_submit_and_cancels_nothing(
    client: P.Client, service: FakeService
) -> None:
    service.running.clear()
    async with client.session() as session:
        out = step("x")
    assert await session.link.reader(out.id).states([out.id]) == ["pending"]
    service.running.set()
    assert await out.get(timeout_s=10) == "<step.out:2>"


async def test_published_gives_an_id_that_others_know(session: P.Session) -> None:
    out = step("x", session=session)
    variable_id = await out.published()
    assert await session.link.reader(variable_id).states([variable_id]) == ["pending"]


async def test_a_refused_submit_surfaces_everywhere_once_asked(client: P.Client, session: P.Session) -> None:
    missing = client.variable("0-v-nobody")
    out = step(missing, session=session)
    following = step(out, session=session)
    with pytest.raises(P.UnknownVariable, match="0-v-nobody"):
        await session.flush()
    await session.flush()  # reported once
    for variable in (out, following):
        with pytest.raises(P.UnknownVariable, match="0-v-nobody"):
            await variable.get()
        with pytest.raises(P.UnknownVariable):
            await variable.published()
    late = step(following, session=session)
    with pytest.raises(P.UnknownVariable, match="0-v-nobody"):
        await late.get()
    assert await session.variables() == {}


async def test_a_refused_submit_surfaces_at_the_sessions_end(client: P.Client) -> None:
    with pytest.raises(P.UnknownVariable):
        async with client.session():
            step(client.variable("0-v-nobody"))
    with pytest.raises(KeyError) as caught:
        await broken_block(client)
    assert "0-v-nobody" in caught.value.__notes__[0]


async def broken_block(client: P.Client) -> None:
    async with client.session():
        step(client.variable("0-v-nobody"))
        raise KeyError


async def test_an_error_that_was_seen_is_not_raised_again(client: P.Client) -> None:
    async with client.session():
        out = step(client.variable("0-v-nobody"))
        with pytest.raises(P.UnknownVariable):
            await out


async def test_a_closed_session_takes_no_more(client: P.Client, service: FakeService) -> None:
    async with client.session() as session:
        first = step("x")
        await session.close()
        with pytest.raises(P.SessionClosed, match=session.id):
            await step("y")
        assert await first.get(timeout_s=10) == "<step.out:2>"


async def test_two_sessions_use_one_anothers_variables(client: P.Client, service: FakeService) -> None:
    a, b = await client.session().open(), await client.session().open()
    one = step("x", session=a)
    two = step(one, session=b)
    three = step(two, session=a)
    four = step(three, session=b)
    assert await four.get(timeout_s=10) == "<step.out:14>"
    await a.detach()
    await b.detach()


async def test_a_failed_submit_of_another_session_fails_what_needs_it(client: P.Client) -> None:
    a, b = await client.session().open(), await client.session().open()
    one = step(client.variable("0-v-nobody"), session=a)
    two = step(one, session=b)
    with pytest.raises(P.UnknownVariable, match="nobody"):
        await two
    with pytest.raises(P.UnknownVariable, match="nobody"):
        await one


async def test_a_cycle_is_named(session: P.Session) -> None:
    x, y = session.variable(name="x"), session.variable(name="y")
    step(x, out=y, session=session)
    z = step(y, session=session)
    step(z, out=x, session=session)
    with pytest.raises(P.CycleError) as caught:
        await session.flush()
    for variable in (x, y, z):
        assert variable.id in str(caught.value)
        with pytest.raises(P.CycleError):
            await variable
    assert await session.variables() == {}


async def test_a_cycle_through_what_is_submitted_already(session: P.Session) -> None:
    x = session.variable(name="x")
    y = step(x, session=session)
    await session.flush()
    step(step(y, session=session), out=x, session=session)
    with pytest.raises(P.CycleError, match=x.id):
        await session.flush()
    assert await x.producer() is None  # x itself is as it was, and can still be set
    await x.set("text")


async def test_a_call_that_reads_its_own_output(session: P.Session) -> None:
    x = session.variable(name="x")
    step(x, out=x, session=session)
    with pytest.raises(P.CycleError, match=x.id):
        await session.flush()


async def test_outputs_made_before_are_sorted(session: P.Session, service: FakeService) -> None:
    variables = [session.variable(name=f"v{i}") for i in range(20)]
    for source, target in zip(variables[-2::-1], variables[:0:-1], strict=True):
        step(source, out=target, session=session)
    await variables[0].set("start")
    assert await variables[-1].get(timeout_s=10) == "<step.out:14>"


async def test_what_reads_an_output_by_its_id_may_be_called_first(
    session: P.Session, client: P.Client, service: FakeService
) -> None:
    made = session.variable(name="made")
    following = step(client.variable(made.id), session=session)
    step("x", out=made, session=session)
    assert await following.get(timeout_s=10) == "<step.out:13>"


async def test_overloaded_is_retried_until_there_is_room() -> None:
    async with fake(StoreSettings(max_live_requests=1)) as store, FakeService(store).serving() as service:
        service.running.clear()
        async with P.connect(store=store) as client, client.session() as session:
            first = step("x")
            await session.flush()
            second = step("y")
            await asyncio.sleep(0.05)
            service.running.set()
            assert await P.gather(first, second, timeout_s=20) == ["<step.out:2>"] * 2


async def test_overloaded_is_raised_once_the_time_is_over() -> None:
    settings = ClientSettings(submit_timeout_s=0.1)
    async with (
        fake(StoreSettings(max_live_requests=1)) as store,
        P.connect(store=store, settings=settings) as client,
    ):
        session = await client.session().open()
        step("x", session=session)
        await session.flush()
        with pytest.raises(P.Overloaded, match="max_live_requests"):
            await step("y", session=session)


async def test_a_session_is_used_on_its_loop(session: P.Session) -> None:
    problems: list[BaseException] = []

    def work() -> None:
        try:
            step("x", session=session)
        except P.ConfigError as error:
            problems.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    await asyncio.to_thread(thread.join)
    assert "import parrot_mq.sync as P" in str(problems[0])


async def test_a_closed_client_says_so(fake_store: Store) -> None:
    client = await P.connect(store=fake_store)
    session = await client.session().open()
    out = step("x", session=session)
    await session.flush()
    waiting = asyncio.create_task(out.get())
    await asyncio.sleep(0.05)
    await client.aclose()
    with pytest.raises(P.ConfigError, match="closed"):
        await waiting
    with pytest.raises(P.ConfigError, match="closed"):
        await step("y", session=session)
    with pytest.raises(P.ConfigError, match="not connected"):
        client.session()


async def test_a_client_is_not_used_before_it_is_connected() -> None:
    with pytest.raises(P.ConfigError, match="not connected"):
        P.connect("redis://localhost:1").session()
    with pytest.raises(P.ConfigError, match="not a Redis URL"):
        await P.connect("http://localhost")
