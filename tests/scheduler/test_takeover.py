"""Leadership: take-over after a crash, fencing, Redis that restarts."""

from __future__ import annotations

import asyncio
import dataclasses
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from parrot_mq.errors import Overloaded, StoreError, StoreUnavailable
from parrot_mq.keys import ENGINES, LEADER
from parrot_mq.messages import LATENCY, THROUGHPUT
from parrot_mq.scheduler import Scheduler, serve
from parrot_mq.scheduler.core import Core
from parrot_mq.scheduler.fold import fold
from parrot_mq.scheduler.recovery import recover
from parrot_mq.store import Store, connect, encode_value
from parrot_mq.store.engine import register
from parrot_mq.store.records import DispatchItem
from parrot_mq.store.scheduler import SchedulerStore, new_epoch, take_leadership
from parrot_mq.store.server import RedisServer
from tests.scheduler.conftest import Start
from tests.scheduler.support import QUICK, App, StubEngine, core_with, engine, function, until

Engines = Callable[..., Awaitable[StubEngine]]


async def crash(task: asyncio.Task[None]) -> None:
    """End a scheduler as kill -9 does: its key stays until it expires."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_another_scheduler_takes_over(shell_store: Store, app: App, engines: Engines, running: Start) -> None:
    stub = await engines("e0", slots=2)
    first, second = Scheduler(shell_store, QUICK), Scheduler(shell_store, QUICK)
    doomed = running(first)
    await first.leading.wait()
    running(second)
    stub.gate.clear()
    maps = [app.call([app.value(str(n))]) for n in range(10)]
    end = app.call([app.call(maps)])
    requests = await app.submit()
    await app.want(end, LATENCY)
    await stub.started.wait()
    await crash(doomed)
    assert await shell_store.client.get(LEADER) == first.id, "the fault is that the key is left behind"
    late = app.call([app.value("late")])
    await app.submit()
    await second.leading.wait()
    stub.gate.set()
    assert (await app.get(end)).value == "+".join(map(str, range(10)))
    assert (await app.get(late)).value == "late"
    started = [claim.request for claim in stub.claims]
    assert len(started) == len(set(started)) == len(requests) + 1, "nothing ran twice"
    assert int(await shell_store.client.get("pmq:{p0}:epoch")) == 2


async def test_requests_that_an_engine_holds_stay_with_it(
    shell_store: Store, app: App, engines: Engines, running: Start
) -> None:
    stub = await engines("e0", slots=4)
    stub.gate.clear()
    doomed = running(Scheduler(shell_store, QUICK))
    ends = [app.call([app.value("x")]) for _ in range(4)]
    await app.submit()
    await stub.started.wait()
    await crash(doomed)
    second = Scheduler(shell_store, QUICK)
    running(second)
    await second.leading.wait()
    assert second.term is not None
    core = second.term.core
    await until(lambda: "e0" in core.engines and core.engines["e0"].num_outstanding == 4)
    stub.gate.set()
    for end in ends:
        assert (await app.get(end)).value == "x"
    await until(lambda: not core.engines["e0"].num_outstanding)


async def test_an_engine_that_died_while_nobody_led_is_reaped(
    shell_store: Store, app: App, engines: Engines, running: Start
) -> None:
    stub = await engines("e0", slots=4)
    stub.gate.clear()
    doomed = running(Scheduler(shell_store, QUICK))
    end = app.call([app.value("x")])
    await app.submit()
    await stub.started.wait()
    await crash(doomed)
    await stub.kill()
    await shell_store.client.delete("pmq:{p0}:eng:e0")
    await shell_store.client.zrem(ENGINES, "e0")  # and it is not even listed any more
    running(Scheduler(shell_store, QUICK))
    await engines("e1")
    assert (await app.get(end)).value == "x"


async def test_a_fenced_leader_stands_by(shell_store: Store, app: App, engines: Engines, running: Start) -> None:
    await engines("e0")
    scheduler = Scheduler(shell_store, QUICK)
    running(scheduler)
    await scheduler.leading.wait()
    term = scheduler.term
    await shell_store.client.set(LEADER, "another")
    epoch = await new_epoch(shell_store)  # another scheduler leads from here on
    end = app.call([app.value("x")])
    await app.submit()
    await until(lambda: not scheduler.leading.is_set())
    assert term is not None
    assert term.dispatcher.num_dispatched == 0
    # A task group that failed must not leave the task that stands by marked as being cancelled.
    assert [task.cancelling() for task in asyncio.all_tasks() if task.get_name() == "scheduler-work"] == [0]
    await shell_store.client.delete(LEADER)  # the other one is gone
    assert (await app.get(end)).value == "x"
    assert scheduler.term is not None
    assert scheduler.term.epoch > epoch


async def test_only_one_leads(shell_store: Store, running: Start) -> None:
    schedulers = [Scheduler(shell_store, QUICK) for _ in range(3)]
    for scheduler in schedulers:
        running(scheduler)
    await until(lambda: any(s.leading.is_set() for s in schedulers))
    await asyncio.sleep(2 * QUICK.leader_ttl_s)
    assert sum(s.leading.is_set() for s in schedulers) == 1
    (leader,) = [s for s in schedulers if s.leading.is_set()]
    leader.stop()
    await until(lambda: not leader.leading.is_set() and any(s.leading.is_set() for s in schedulers))


async def test_recovery_loads_the_whole_graph(shell_store: Store, app: App) -> None:
    by_hand = app.pending()
    maps = [app.call([app.value(f"text {n}")]) for n in range(5)]
    reduce = app.call([*maps, by_hand])
    await app.submit()
    await app.want(reduce, LATENCY)
    core = core_with(engine("e0", slots=3))
    dispatched: list[int] = []

    async def dispatch() -> None:
        dispatched.append(len(core.graph.requests))

    found = await recover(core, shell_store.partitions[0], lambda: 0.0, dispatch, asyncio.Event())
    assert found.num_requests == 6
    assert dispatched == [6], "what belongs together is loaded before anything starts"
    assert len(core.ready) == 5
    nodes = list(core.graph.requests.values())
    assert all(node.objective == LATENCY for node in nodes)
    assert len({node.group for node in nodes[:5]}) == 1
    assert nodes[0].group is not None
    assert nodes[0].inputs[0].digest
    assert nodes[5].depth == 1


@pytest.mark.parametrize("page", [1, 2, 4])
async def test_a_task_group_is_whole_however_its_requests_are_read(
    shell_store: Store, app: App, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    monkeypatch.setattr("parrot_mq.scheduler.recovery.PIPELINE", page)
    store = SchedulerStore(shell_store.partitions[0], await new_epoch(shell_store))
    await register(shell_store, engine("e0"))
    reduce = app.call(maps := [app.call([app.value(f"text {n}")]) for n in range(6)])
    requests = await app.submit()
    await app.want(reduce, LATENCY)
    await store.dispatch([DispatchItem(request, "e0") for request in requests[: len(maps)]], ["token"] * len(maps))
    core = core_with(engine("e0"))

    async def dispatch() -> None:
        pass

    await recover(core, shell_store.partitions[0], lambda: 0.0, dispatch, asyncio.Event())
    assert core.engines["e0"].num_outstanding == 6
    (group,) = {core.graph.requests[request].group for request in requests[:6]}
    assert group is not None
    assert group.size == 6


async def test_an_engine_is_told_what_a_former_leader_may_not_have_come_to(shell_store: Store, app: App) -> None:
    store = SchedulerStore(shell_store.partitions[0], await new_epoch(shell_store))
    await register(shell_store, engine("e0"))
    output = app.call([app.value("x")])
    (request,) = await app.submit()
    await app.want(output, THROUGHPUT)
    await store.dispatch([DispatchItem(request, "e0", '{"objective":"throughput"}')], ["token"])
    core = core_with(engine("e0"))

    async def dispatch() -> None:
        pass

    await recover(core, shell_store.partitions[0], lambda: 0.0, dispatch, asyncio.Event())
    node = core.graph.requests[request]
    assert [(node.id, node.objective) for node in core.upgraded] == [(request, THROUGHPUT)]
    core.upgraded.clear()
    core.want(output, THROUGHPUT)
    assert not core.upgraded
    core.want(output, LATENCY)
    assert list(core.upgraded) == [node]


async def test_a_large_graph_starts_while_it_is_loaded(
    shell_store: Store, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("parrot_mq.scheduler.recovery.EARLY", 3)
    root = app.call([app.value("x")])
    for _ in range(4):
        app.call([root])
    await app.submit()
    core = core_with(engine("e0"))
    dispatched: list[tuple[int, int]] = []

    async def dispatch() -> None:
        dispatched.append((len(core.ready), len(core.graph.requests)))

    await recover(core, shell_store.partitions[0], lambda: 0.0, dispatch, asyncio.Event())
    assert dispatched == [(1, 1), (1, 5)]


async def test_loading_ends_when_the_term_does(shell_store: Store, app: App) -> None:
    app.call([app.value("x")])
    await app.submit()
    core, over = core_with(engine("e0")), asyncio.Event()
    over.set()

    async def dispatch() -> None:
        pass

    assert (await recover(core, shell_store.partitions[0], lambda: 0.0, dispatch, over)).num_requests == 0


async def test_what_happened_during_recovery_is_not_lost(shell_store: Store, app: App) -> None:
    """A request that is submitted after the id was noted is both loaded and read; one that is done by then, neither."""
    store = SchedulerStore(shell_store.partitions[0], await new_epoch(shell_store))
    after = await store.last_intake_id()
    app.call([app.value("x")])
    requests = await app.submit()
    core = Core(QUICK)

    async def dispatch() -> None:
        pass

    await recover(core, shell_store.partitions[0], lambda: 0.0, dispatch, asyncio.Event())
    await app.producer.cancel_requests(requests)
    for entry in await store.read_intake(after, block_ms=None):
        fold(core, entry, 0.0)
    assert core.graph.requests == {}
    assert len(core.ready) == 0


async def test_serve_drains_on_sigterm(shell_store: Store, app: App, engines: Engines) -> None:
    await engines("e0")
    end = app.call([app.value("x")])
    await app.submit()
    async with asyncio.TaskGroup() as tasks:
        served = tasks.create_task(serve(shell_store, QUICK))
        assert (await app.get(end)).value == "x"
        signal.raise_signal(signal.SIGTERM)
        await served
    assert await take_leadership(shell_store, "next", 1.0), "leadership was given up"


@pytest.mark.redis
async def test_a_redis_that_restarts_is_survived(tmp_path: Path, running: Start) -> None:
    with RedisServer(tmp_path) as server:
        async with await connect(server.url) as store:
            app = await App(store).open()
            scheduler = Scheduler(store, QUICK)
            running(scheduler)
            await scheduler.leading.wait()
            first = scheduler.term
            by_hand = app.pending()
            end = app.call([by_hand])
            await app.submit()
            await asyncio.sleep(1.1)  # AOF everysec: now it is on the disk
            server.kill()
            server.start()
            await until(lambda: scheduler.term is not None and scheduler.term is not first)
            stub = await StubEngine(store, "e0").start()
            await app.producer.set_variable(by_hand, encode_value("x", store.settings, ""))
            assert (await app.get(end)).value == "x"
            await stub.kill()
            scheduler.stop()


@pytest.mark.parametrize("error", [StoreUnavailable("Redis has not answered for 15 s"), Overloaded("out of memory")])
async def test_redis_that_fails_leads_back_to_standing_by(
    shell_store: Store,
    app: App,
    engines: Engines,
    running: Start,
    monkeypatch: pytest.MonkeyPatch,
    error: StoreError,
) -> None:
    await engines("e0")
    scheduler = Scheduler(shell_store, QUICK)
    running(scheduler)
    await scheduler.leading.wait()
    first = scheduler.term
    failures = 0

    async def away(*_args: object) -> bool:
        nonlocal failures
        failures += 1
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("parrot_mq.scheduler.leader.take_leadership", away)
        await until(lambda: failures >= 2)  # as a leader, and while standing by
        assert not scheduler.leading.is_set()
    end = app.call([app.value("x")])
    await app.submit()
    assert (await app.get(end)).value == "x"
    assert scheduler.term is not first


async def test_stop_ends_a_scheduler_that_cannot_drain(
    shell_store: Store, app: App, running: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = Scheduler(shell_store, dataclasses.replace(QUICK, drain_timeout_s=0.1))
    stuck = asyncio.Event()

    async def hang(*_args: object, **_kwargs: object) -> None:
        stuck.set()
        await asyncio.Event().wait()

    monkeypatch.setattr("parrot_mq.scheduler.reaper.Reaper.reap", hang)
    task = running(scheduler)
    await stuck.wait()
    scheduler.stop()
    await task
    assert not scheduler.leading.is_set()


async def test_a_scheduler_that_stands_by_stops_at_once(shell_store: Store, running: Start) -> None:
    await take_leadership(shell_store, "another", 60.0)
    scheduler = Scheduler(shell_store, QUICK)
    task = running(scheduler)
    await asyncio.sleep(0.05)
    scheduler.stop()
    await task
    assert await shell_store.client.get(LEADER) == "another"


async def test_the_next_leader_knows_how_long_outputs_get(
    shell_store: Store, app: App, engines: Engines, running: Start
) -> None:
    stub = await engines("e0", slots=1)
    quick = dataclasses.replace(QUICK, learn_interval_s=0.02)
    doomed = running(Scheduler(shell_store, quick))
    end = app.call([app.value("x")], max_tokens=400)
    await app.submit()
    await app.get(end)
    store = SchedulerStore(shell_store.partition(0))
    for _ in range(1000):
        lengths = (await store.template("acme", function(1).digest))[1]
        if lengths:
            break
        await asyncio.sleep(0.01)
    assert 0 < lengths[2].mean < 100
    await crash(doomed)
    second = Scheduler(shell_store, quick)
    running(second)
    await second.leading.wait()
    stub.gate.clear()
    for number in range(20):  # more than the engine's queue takes: the rest wait while their function is looked up
        app.call([app.value(str(number))], max_tokens=400)
    requests = await app.submit()
    assert second.term is not None
    graph = second.term.core.graph
    await until(lambda: any(r in graph.requests and graph.requests[r].output_tokens < 100 for r in requests))
    stub.gate.set()
