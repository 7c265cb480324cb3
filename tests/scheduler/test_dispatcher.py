"""What the dispatcher makes of answers that are not a fence."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence

import pytest

from parrot_mq.errors import ErrorRecord, Fenced, Overloaded
from parrot_mq.messages import RequestState
from parrot_mq.scheduler.core import Core
from parrot_mq.scheduler.dispatcher import MAX_BATCH, Dispatcher
from parrot_mq.scheduler.fold import fold
from parrot_mq.store import EngineStore, Reader, Store
from parrot_mq.store.engine import deregister, register
from parrot_mq.store.records import DispatchItem, RequestRecord
from parrot_mq.store.scheduler import SchedulerStore, new_epoch
from tests.scheduler.support import App, core_with
from tests.scheduler.support import engine as engine_record


class Rig:
    """A dispatcher over a store, without the loops around it."""

    def __init__(self, store: Store, epoch: int, *, slots: int) -> None:
        self.record = engine_record("e0", slots=slots)
        self.core: Core = core_with(self.record)
        self.store = SchedulerStore(store.partitions[0], epoch)
        self.over = asyncio.Event()
        self.dispatcher = Dispatcher(self.core, [self.store], store.ids, self.over)

    async def read(self) -> None:
        for entry in await self.store.read_intake("0-0", block_ms=None):
            fold(self.core, entry, 0.0)


@pytest.fixture
async def rig(shell_store: Store, app: App) -> Rig:
    rig = Rig(shell_store, await new_epoch(shell_store), slots=100)
    await register(shell_store, rig.record)
    return rig


async def test_dispatches_go_in_batches(
    shell_store: Store, app: App, rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    inner = rig.store.dispatch

    async def dispatch(items: Sequence[DispatchItem], tokens: Sequence[str]) -> list[str]:
        sizes.append(len(items))
        return await inner(items, tokens)

    monkeypatch.setattr(rig.store, "dispatch", dispatch)
    for _ in range(90):
        app.call([app.value("x")])
    await app.submit()
    await rig.read()
    await rig.dispatcher.dispatch()
    assert sizes == [MAX_BATCH, 90 - MAX_BATCH]
    assert rig.dispatcher.num_dispatched == 90
    assert all(node.fence for node in rig.core.graph.requests.values())


async def test_a_request_whose_engine_is_gone_is_queued_again(shell_store: Store, app: App, rig: Rig) -> None:
    app.call([app.value("x")])
    (request,) = await app.submit()
    await rig.read()
    await deregister(shell_store, "e0")
    await rig.dispatcher.dispatch()
    node = rig.core.graph.requests[request]
    assert (node.state, node.engine) == (RequestState.READY, "")
    assert node in rig.core.ready
    assert rig.core.engines["e0"].suspended
    await rig.dispatcher.dispatch()  # and nothing more is sent there until a heartbeat is read
    assert node in rig.core.ready
    await register(shell_store, rig.record)
    rig.core.update_engines({"e0": rig.record})
    await rig.dispatcher.dispatch()
    assert node.fence


async def test_a_request_that_ended_meanwhile_is_dropped(app: App, rig: Rig) -> None:
    app.call([app.value("x")])
    requests = await app.submit()
    await rig.read()
    await app.producer.cancel_requests(requests)
    await rig.dispatcher.dispatch()
    assert rig.core.graph.requests == {}
    assert rig.core.engines["e0"].num_outstanding == 0


async def test_a_request_that_was_dispatched_already_is_adopted(shell_store: Store, app: App, rig: Rig) -> None:
    other = dataclasses.replace(rig.record, id="e1")
    await register(shell_store, other)
    app.call([app.value("x")])
    (request,) = await app.submit()
    await rig.read()
    (fence,) = await rig.store.dispatch([DispatchItem(request, "e1")], ["token"])
    await rig.dispatcher.dispatch()
    node = rig.core.graph.requests[request]
    assert (node.state, node.engine, node.fence) == (RequestState.QUEUED, "e1", fence)
    assert rig.core.engines["e0"].num_outstanding == 0
    assert rig.core.engines["e1"].num_outstanding == 1


async def test_a_request_in_its_back_off_is_not_dispatched(shell_store: Store, app: App, rig: Rig) -> None:
    app.call([app.value("x")])
    (request,) = await app.submit()
    await rig.read()
    (fence,) = await rig.store.dispatch([DispatchItem(request, "e0")], ["token"])
    await EngineStore(shell_store.partitions[0]).fail(request, fence, ErrorRecord("EngineFailed", "x"), retry=True)
    await rig.dispatcher.dispatch()
    assert rig.core.graph.requests[request].state is RequestState.WAITING
    await asyncio.sleep(0.3)
    await rig.store.reap()
    await rig.read()
    await rig.dispatcher.dispatch()
    assert rig.core.graph.requests[request].fence


async def test_news_that_is_newer_than_a_second_look_counts(
    shell_store: Store, app: App, rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was refused is read again; while it is on the way, a lane sends the request to an engine."""
    app.call([app.value("x")])
    (request,) = await app.submit()
    await rig.read()
    node = rig.core.graph.requests[request]
    await deregister(shell_store, "e0")
    inner = Reader.requests

    async def requests(self: Reader, ids: Sequence[str]) -> list[RequestRecord | None]:
        found = await inner(self, ids)
        rig.core.took_lane(node, node.rev + 5, "e1", "7.x", 0.0)
        return found

    monkeypatch.setattr(Reader, "requests", requests)
    await rig.dispatcher.dispatch()
    assert (node.state, node.engine, node.fence) == (RequestState.QUEUED, "e1", "7.x")
    assert rig.core.engines["e1"].outstanding == [request]
    assert node not in rig.core.ready


async def test_without_memory_dispatch_pauses(app: App, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    inner = rig.store.dispatch

    async def dispatch(items: Sequence[DispatchItem], tokens: Sequence[str]) -> list[str]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise Overloaded("Redis is out of memory", 0.05)
        return await inner(items, tokens)

    monkeypatch.setattr(rig.store, "dispatch", dispatch)
    app.call([app.value("x")])
    await app.submit()
    await rig.read()
    await rig.dispatcher.dispatch()
    assert len(rig.core.ready) == 1
    await rig.dispatcher.dispatch()
    assert calls == 1, "it pauses"
    await asyncio.sleep(0.06)
    await rig.dispatcher.dispatch()
    assert rig.dispatcher.num_dispatched == 1


async def test_a_former_leader_is_fenced(shell_store: Store, app: App, rig: Rig) -> None:
    app.call([app.value("x")])
    await app.submit()
    await rig.read()
    await new_epoch(shell_store)
    with pytest.raises(Fenced, match="another scheduler leads"):
        await rig.dispatcher.dispatch()


async def test_nothing_is_dispatched_once_the_term_is_over(app: App, rig: Rig) -> None:
    app.call([app.value("x")])
    await app.submit()
    await rig.read()
    rig.over.set()
    await rig.dispatcher.dispatch()
    assert rig.dispatcher.num_dispatched == 0


async def test_the_answer_may_come_after_the_news_of_the_end(
    shell_store: Store, app: App, rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = rig.store.dispatch

    async def dispatch(items: Sequence[DispatchItem], tokens: Sequence[str]) -> list[str]:
        fences = await inner(items, tokens)
        await app.producer.cancel_requests([item.request for item in items])
        await rig.read()
        return fences

    monkeypatch.setattr(rig.store, "dispatch", dispatch)
    app.call([app.value("x")])
    await app.submit()
    await rig.read()
    await rig.dispatcher.dispatch()
    assert rig.core.graph.requests == {}
    assert rig.core.engines["e0"].num_outstanding == 0
