"""What is done meanwhile: large graphs that succeed, fail, are cancelled and deleted, and an engine that dies."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import parrot_mq as P
from parrot_mq.errors import StepError
from parrot_mq.messages import EngineRecord, EngineState
from parrot_mq.scheduler.service import Scheduler
from parrot_mq.store import EngineStore, Reader, SchedulerStore, Store
from parrot_mq.store.emission import Emission
from parrot_mq.store.producer import ProducerStore
from parrot_mq.store.records import DispatchItem
from parrot_mq.store.streams import read_streams
from parrot_workers.engine.port import EngineSpec, EngineStats, FinishReason, SequenceInput, SequenceOutput
from parrot_workers.worker.shell import EngineWorker

WIDTH = 10_000
LENGTH = 1_000
NUM_RUNNING = 512
BROKEN = "broken"
"""A prompt that begins with this is refused by the engine."""
TIMEOUT_S = 300.0
EPOCH = 1 << 40
NUM_STREAMED = 128
NUM_PIECES = 16
PIECE = " three tokens "
LATE_PIECE = 2_000 * PIECE
"""What is there when somebody begins to read late."""


@P.semantic_function
def step(text: P.Input, out: P.Output = P.output(max_tokens=1)) -> None:
    """{{text}}:{{out}}"""


merge: P.SemanticFunction[..., P.SemanticVariable] = P.SemanticFunction.from_template(
    "".join(f"{{{{note_{i}}}}}\n" for i in range(LENGTH)) + "{{output:merged}}", name="merge"
)


class EchoEngine:
    """Answers at once: a no-op behind the engine port."""

    def __init__(self) -> None:
        self._added: list[SequenceInput] = []

    @property
    def spec(self) -> EngineSpec:
        return EngineSpec("echo", "echo", 256, 1 << 20, 16, 1 << 20)

    def add(self, sequence: SequenceInput) -> None:
        self._added.append(sequence)

    def abort(self, sequence_id: str) -> None:
        self._added = [sequence for sequence in self._added if sequence.id != sequence_id]

    def step(self) -> list[SequenceOutput]:
        added, self._added = self._added, []
        return [self._output(sequence) for sequence in added]

    def _output(self, sequence: SequenceInput) -> SequenceOutput:
        if sequence.segments[0].text == BROKEN:
            return SequenceOutput(sequence.id, finish=FinishReason.INVALID, error="refused")
        return SequenceOutput(sequence.id, finish=FinishReason.STOP, full_text="x", num_output_tokens=1)

    def stats(self) -> EngineStats:
        return EngineStats(len(self._added), 0, 1 << 20, 1 << 20)

    def has_work(self) -> bool:
        return bool(self._added)

    def check(self) -> None:
        """There are no books."""

    def close(self) -> None:
        self._added.clear()


@contextlib.asynccontextmanager
async def serving(open_store: Callable[[], Awaitable[Store]]) -> AsyncIterator[None]:
    """Run a scheduler and an engine worker in this process."""
    async with await open_store() as store:
        scheduler = Scheduler(store)
        worker = EngineWorker(open_store, EchoEngine, name="echo", kind="echo", threaded_keeper=False)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(scheduler.run())
            tasks.create_task(worker.run())
            await worker.ready.wait()
            try:
                yield
            finally:
                worker.stop()
                scheduler.stop()


async def _failed(variable: P.SemanticVariable) -> None:
    with contextlib.suppress(StepError):
        await variable.get(timeout_s=TIMEOUT_S)


def _chain(text: str | P.SemanticVariable) -> list[P.SemanticVariable]:
    steps = [step(text)]
    while len(steps) < LENGTH:
        steps.append(step(steps[-1]))
    return steps


async def run_graphs(client: P.Client, on_scenario: Callable[[str], None]) -> None:
    """Submit each kind of graph, await its end, and delete it."""
    scenarios: dict[str, Callable[[P.Session], Awaitable[None]]] = {
        "batch": _batch,
        "chain": _run_chain,
        "fan-in": _fan_in,
        "fan-out": _fan_out,
        "cancelled chain": _cancel_chain,
        "cancelled fan-out": _cancel_fan_out,
        "broken chain": _break_chain,
        "broken fan-out": _break_fan_out,
        "unfinished": _leave_unfinished,
    }
    for name, scenario in scenarios.items():
        on_scenario(name)
        async with client.session(tenant="bench") as session:
            await scenario(session)
            await session.delete()


async def _batch(session: P.Session) -> None:
    await P.map(step, [f"text {i}" for i in range(WIDTH)]).get(timeout_s=TIMEOUT_S)


async def _run_chain(session: P.Session) -> None:
    await _chain("go")[-1].get(timeout_s=TIMEOUT_S)


async def _fan_in(session: P.Session) -> None:
    merged = merge(*(step(f"text {i}") for i in range(LENGTH)))
    await merged.get(timeout_s=TIMEOUT_S)
    values = [session.variable("x" * 100) for _ in range(LENGTH)]
    await merge(*values).get(timeout_s=TIMEOUT_S)


async def _fan_out(session: P.Session) -> None:
    source = session.variable()
    outs = P.map(step, [source] * WIDTH)
    await session.flush()
    await source.set("go")
    await outs.get(timeout_s=TIMEOUT_S)


async def _cancel_chain(session: P.Session) -> None:
    steps = _chain(session.variable())
    await steps[0].cancel()
    await _failed(steps[-1])
    source = session.variable()
    _chain(source)
    await session.cancel()


async def _cancel_fan_out(session: P.Session) -> None:
    source = session.variable()
    outs = P.map(step, [source] * WIDTH)
    await session.flush()
    await outs.cancel()


async def _break_chain(session: P.Session) -> None:
    await _failed(_chain(BROKEN)[-1])


async def _break_fan_out(session: P.Session) -> None:
    source = step(BROKEN)
    outs = P.map(step, [source] * WIDTH)
    merged = merge(*list(outs)[:LENGTH])
    await _failed(merged)
    for out in outs:
        await _failed(out)


async def _leave_unfinished(session: P.Session) -> None:
    """What only the deletion of the session ends."""
    P.map(step, [session.variable()] * (WIDTH // 2))
    await session.flush()


async def _start(store: Store, name: str, count: int) -> list[tuple[str, str]]:
    """Have an engine claim ``count`` requests, with as many left in its queue; return (request, fence) pairs."""
    partition = store.partition(0)
    scheduler, engine = SchedulerStore(partition, epoch=EPOCH), EngineStore(partition)
    await engine.heartbeat(EngineRecord(name, "echo", "echo", EngineState.READY))
    ids = (await Reader(partition).live())[: 2 * count]
    for at in range(0, len(ids), 64):
        part = ids[at : at + 64]
        await scheduler.dispatch([DispatchItem(i, name) for i in part], [store.ids.token() for _ in part])
    held: list[tuple[str, str]] = []
    while len(held) < count:
        assignments, _ = await engine.receive(name, "0", block_ms=1, count=64)
        held += [(c.request, c.fence) for c in await engine.start(name, assignments) if c is not None]
    await engine.renew(name, held)
    return held


async def stream_outputs(client: P.Client, store: Store, on_scenario: Callable[[str], None]) -> None:
    """Outputs are streamed, in pieces as they come, and read all at once."""
    on_scenario("streams")
    partition = store.partition(0)
    async with client.session(tenant="bench") as session:
        outs = P.map(step, [f"text {i}" for i in range(2 * NUM_STREAMED)])
        await session.flush()
        held = await _start(store, "streaming", NUM_STREAMED)
        for at in range(NUM_PIECES):
            text = PIECE if at else LATE_PIECE
            pieces = [Emission(request, fence, 3 * at, (at, at + 1, at + 2), text) for request, fence in held]
            await EngineStore(partition).emit_many(pieces)
        places = [(out.id, "0") for out in outs]
        await ProducerStore(partition).wants([(out, None) for out, _ in places], stream=True)
        await read_streams(partition, places)
        await session.delete()


async def lose_engine(client: P.Client, store: Store, on_scenario: Callable[[str], None]) -> None:
    """An engine dies with requests running and queued, another with leases that run out, a third gives them back."""
    on_scenario("dead engine")
    partition = store.partition(0)
    scheduler, engine, keys = SchedulerStore(partition, epoch=EPOCH), EngineStore(partition), partition.keys
    async with client.session(tenant="bench") as session:
        P.map(step, [f"text {i}" for i in range(2 * NUM_RUNNING)])
        await session.flush()
        held = await _start(store, "dying", NUM_RUNNING)
        await store.client.delete(keys.engine("dying"))
        more, running = True, [request for request, _ in held]
        while more or running:
            _, more = await scheduler.reap_engine("dying", running[:200])
            del running[:200]
        held = await _start(store, "late", NUM_RUNNING)
        await store.client.zadd(keys.leases, {request: 1 for request, _ in held})
        while await scheduler.reap():
            pass
        held = await _start(store, "leaving", NUM_RUNNING)
        for at in range(0, len(held), 64):
            await engine.release("leaving", held[at : at + 64])
        await session.delete()
