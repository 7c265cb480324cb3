"""Several partitions on one server: one leader, one graph, variables imported across."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from parrot_mq.keys import make_id
from parrot_mq.messages import LATENCY, Objective, VariableState
from parrot_mq.scheduler import Scheduler
from parrot_mq.settings import StoreSettings
from parrot_mq.store import Reader, Store, connect, encode_value
from tests.conftest import fake
from tests.scheduler.conftest import Start
from tests.scheduler.support import QUICK, App, StubEngine, until

SETTINGS = StoreSettings(partitions=2, want_grace_s=0.3)


@pytest.fixture(params=["fake", pytest.param("redis", marks=pytest.mark.redis)])
async def two(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """A store with two partitions."""
    if request.param == "fake":
        async with fake(SETTINGS) as connected:
            yield connected
        return
    async with await connect(request.getfixturevalue("redis_url"), SETTINGS) as connected:
        await connected.client.flushall()
        yield connected


@pytest.fixture
async def engine(two: Store) -> AsyncIterator[StubEngine]:
    stub = await StubEngine(two, "e0").start()
    yield stub
    await stub.kill()


async def test_one_leader_serves_both(two: Store, engine: StubEngine, running: Start) -> None:
    running(Scheduler(two, QUICK))
    apps = [await App(two, number).open() for number in (0, 1)]
    ends = []
    for app in apps:
        maps = [app.call([app.value(str(n))]) for n in range(5)]
        ends.append(app.call(maps))
        await app.submit()
    for app, end in zip(apps, ends, strict=True):
        assert (await app.get(end)).value == "0+1+2+3+4"


async def test_a_variable_of_another_partition_is_imported(two: Store, engine: StubEngine, running: Start) -> None:
    scheduler = Scheduler(two, QUICK)
    running(scheduler)
    home, away = await App(two, 0).open(), await App(two, 1).open()
    engine.gate.clear()
    made = home.call([home.value("from home")])
    known = home.value("known already")
    await home.submit()
    end = away.call([made, known])
    await away.submit()
    await away.want(end, LATENCY)

    def objective() -> Objective | None:
        nodes = scheduler.term.core.graph.variables if scheduler.term is not None else {}
        producer = nodes[made].producer if made in nodes else None
        return producer.objective if producer is not None else None

    await until(lambda: objective() == LATENCY)  # objectives cross partitions
    engine.gate.set()
    record = await away.get(end)
    assert record.value == "from home+known already"
    assert scheduler.term is not None
    term = scheduler.term
    await until(lambda: not term.core.graph.requests and not term.core.graph.variables)


async def test_an_import_survives_a_take_over(two: Store, engine: StubEngine, running: Start) -> None:
    home, away = await App(two, 0).open(), await App(two, 1).open()
    by_hand = home.pending()
    await home.submit()
    end = away.call([by_hand])
    await away.submit()
    await two.client.delete(two.partitions[1].keys.intake)  # as if the former leader had read it and died
    scheduler = Scheduler(two, QUICK)
    running(scheduler)
    importers = f"{two.partitions[0].keys.variable(by_hand)}:remote"
    await until(lambda: two.client.exists(importers))
    await home.producer.set_variable(by_hand, encode_value("late", two.settings, ""))
    assert (await away.get(end)).value == "late"


async def test_an_error_is_imported_as_an_error(two: Store, engine: StubEngine, running: Start) -> None:
    running(Scheduler(two, QUICK))
    home, away = await App(two, 0).open(), await App(two, 1).open()
    by_hand = home.pending()
    await home.submit()
    end = away.call([by_hand])
    await away.submit()
    await home.producer.cancel_variable(by_hand)
    record = await away.get(end)
    assert record.error is not None
    assert record.error.kind == "Cancelled"


async def test_another_tenants_variable_is_forbidden(two: Store, running: Start) -> None:
    running(Scheduler(two, QUICK))
    home, away = await App(two, 0, tenant="acme").open(), await App(two, 1, tenant="rival").open()
    secret = home.value("secret")
    await home.submit()
    end = away.call([secret])
    await away.submit()
    record = await away.get(end)
    assert record.error is not None
    assert record.error.kind == "Forbidden"
    assert secret in record.error.message


async def test_an_unknown_variable_is_waited_for_and_then_an_error(
    two: Store, engine: StubEngine, running: Start
) -> None:
    running(Scheduler(two, QUICK))
    home, away = await App(two, 0).open(), await App(two, 1).open()
    late, never = home.pending(), make_id(0, "v", "never")
    ends = [away.call([late]), away.call([never])]
    await away.submit()
    await asyncio.sleep(0.1)
    await home.submit()  # only now does `late` exist
    await home.producer.set_variable(late, encode_value("in time", two.settings, ""))
    assert (await away.get(ends[0])).value == "in time"
    record = await away.get(ends[1])
    assert record.error is not None
    assert record.error.kind == "NeverSet"
    assert never in record.error.message


async def test_a_partition_that_does_not_exist_is_an_error(two: Store, running: Start) -> None:
    running(Scheduler(two, QUICK))
    app = await App(two, 1).open()
    end = app.call([make_id(7, "v", "x")])
    await app.submit()
    record = await app.get(end)
    assert record.error is not None
    assert record.error.kind == "InvalidRequest"
    assert "PARROT_MQ_PARTITIONS" in record.error.message


async def test_an_importer_that_is_gone_does_not_stop_the_relay(two: Store, engine: StubEngine, running: Start) -> None:
    running(Scheduler(two, QUICK))
    home, gone, away = await App(two, 0).open(), await App(two, 1).open(), await App(two, 1).open()
    by_hand = home.pending()
    other = home.pending()
    await home.submit()
    gone.call([by_hand])
    await gone.submit()
    importers = f"{two.partitions[0].keys.variable(by_hand)}:remote"
    await until(lambda: two.client.exists(importers))
    await gone.producer.delete_session(gone.session)
    assert await Reader(two.partitions[1]).variable(by_hand) is None, "the fault is that the stub is gone"
    end = away.call([other])
    await away.submit()
    await home.producer.set_variable(by_hand, encode_value("for nobody", two.settings, ""))
    await home.producer.set_variable(other, encode_value("for you", two.settings, ""))
    record = await away.get(end)
    assert (record.state, record.value) == (VariableState.READY, "for you")

    async def relayed() -> bool:
        return not await two.client.xlen(two.partitions[0].keys.outbox)

    await until(relayed)
