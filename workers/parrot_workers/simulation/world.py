"""A simulated deployment: a client, schedulers and engines on one Redis in memory, in virtual time."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import random
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from parrot_mq.errors import ConfigError
from parrot_mq.scheduler.service import Scheduler
from parrot_mq.sdk.client import Client, connect
from parrot_mq.settings import ClientSettings, SchedulerSettings, StoreSettings, WorkerSettings
from parrot_mq.store import Store
from parrot_mq.store.ids import IdSource, SeededIds
from parrot_workers.engine.port import EnginePort
from parrot_workers.sim import SimEngine, StepClock
from parrot_workers.simulation.errors import SimulationError
from parrot_workers.simulation.memory_redis import MemoryRedis
from parrot_workers.simulation.setup import EngineSetup
from parrot_workers.simulation.step_task import StepTask
from parrot_workers.simulation.timings import Timings
from parrot_workers.simulation.wire import Traffic, Wire
from parrot_workers.worker.shell import EngineWorker
from parrot_workers.worker.stepper import Event, Stepped

READY_S = 30.0
"""Virtual time in which a component must be ready."""
STOP_S = 60.0
"""Virtual time in which a component must end."""


@dataclasses.dataclass(slots=True)
class _Engine:
    """One engine worker and what is around it."""

    engine: SimEngine
    worker: EngineWorker
    wire: Wire
    stepper: StepTask
    task: asyncio.Task[None]


@dataclasses.dataclass(slots=True)
class _Leader:
    """One scheduler and what is around it."""

    scheduler: Scheduler
    wire: Wire
    task: asyncio.Task[None]


class World:
    """What ``main`` of a simulation is given.

    ``client`` is connected; ``random`` is seeded; ``traffic`` counts what goes to Redis, and injects failures;
    ``timings`` are those of each request's tokens. Engines and schedulers go by names.
    """

    client: Client

    def __init__(
        self,
        group: asyncio.TaskGroup,
        seed: int,
        scheduler: SchedulerSettings,
        store: StoreSettings,
        worker: WorkerSettings,
    ) -> None:
        self.random = random.Random(f"{seed} application")
        self.traffic = Traffic()
        self.timings = Timings()
        self._seed = seed
        self._scheduler_settings = scheduler
        self._worker_settings = worker
        self._redis = MemoryRedis(store)
        self._loop = asyncio.get_running_loop()
        self._engines: dict[str, _Engine] = {}
        self._schedulers: dict[str, _Leader] = {}
        self._group = group
        self._stores: list[Store] = []

    def now_s(self) -> float:
        """Return the virtual time in seconds; it begins at 0."""
        return self._loop.time()

    @property
    def engines(self) -> list[SimEngine]:
        """Every engine there ever was, in the order in which they came."""
        return [entry.engine for entry in self._engines.values()]

    def engine(self, name: str) -> SimEngine:
        """Return an engine by its name."""
        return self._engine(name).engine

    async def add_engine(self, setup: EngineSetup) -> list[SimEngine]:
        """Start the engines of ``setup``, return them once they take work. Raises ``ConfigError`` for a taken name."""
        new = []
        for name in setup.names():
            if name in self._engines:
                raise ConfigError(f"there is an engine {name!r} already; give another name")
            new.append(self._start_engine(name, setup))
        for entry in new:
            async with asyncio.timeout(READY_S):
                await entry.worker.ready.wait()
        return [entry.engine for entry in new]

    def kill_engine(self, name: str) -> None:
        """End an engine in the middle of whatever it does; nothing more of it reaches Redis."""
        entry = self._engine(name)
        entry.wire.cut()
        entry.stepper.kill()
        entry.task.cancel()

    async def stop_engine(self, name: str) -> None:
        """Have an engine drain, and wait until it has ended."""
        entry = self._engine(name)
        entry.worker.stop()
        await asyncio.wait([entry.task], timeout=STOP_S)

    def partition_engine(self, name: str, *, for_s: float) -> None:
        """Cut an engine off from Redis for a time; it goes on computing."""
        wire = self._engine(name).wire
        wire.cut()
        self._loop.call_later(for_s, wire.mend)

    async def add_scheduler(self) -> str:
        """Start another scheduler, which leads once no other does; returns its name."""
        name = f"scheduler-{len(self._schedulers)}"
        wire = Wire(name, self.traffic)
        store = await self._open(wire, self._ids(name))
        scheduler = Scheduler(store, self._scheduler_settings)
        task = self._group.create_task(_component(name, scheduler.run()), name=name)
        self._schedulers[name] = _Leader(scheduler, wire, task)
        return name

    def kill_scheduler(self, name: str = "scheduler-0") -> None:
        """End a scheduler in the middle of whatever it does."""
        leader = self._schedulers[name]
        leader.wire.cut()
        leader.task.cancel()

    async def leading(self, name: str = "scheduler-0") -> None:
        """Wait until a scheduler leads."""
        async with asyncio.timeout(READY_S):
            await self._schedulers[name].scheduler.leading.wait()

    # For ``simulate`` -------------------------------------------------------------------------------------------------

    async def begin(self, engines: Sequence[EngineSetup], tenant: str) -> None:
        """Start everything."""
        await self.leading(await self.add_scheduler())
        for setup in engines:
            await self.add_engine(setup)
        store = await self._open(Wire("client", self.traffic), self._ids("client"))
        self.client = connect("redis://simulated", tenant=tenant, settings=ClientSettings(), store=store)
        await self.client.open()

    async def finish(self) -> None:
        """End everything that still runs."""
        if hasattr(self, "client"):
            await self.client.aclose()
        for leader in self._schedulers.values():
            leader.scheduler.stop()
        for entry in self._engines.values():
            entry.worker.stop(now=True)
        tasks = [leader.task for leader in self._schedulers.values()]
        tasks += [entry.task for entry in self._engines.values()]
        if tasks:
            await asyncio.wait(tasks, timeout=STOP_S)
        for store in self._stores:
            await store.aclose()

    async def _open(self, wire: Wire, ids: IdSource) -> Store:
        store = await self._redis.open(wire, ids)
        self._stores.append(store)
        return store

    def _engine(self, name: str) -> _Engine:
        if name not in self._engines:
            known = ", ".join(self._engines) or "none"
            raise ConfigError(f"there is no engine {name!r}; there are: {known}")
        return self._engines[name]

    def _ids(self, name: str) -> IdSource:
        return SeededIds(random.Random(f"{self._seed} {name}").getrandbits(64))

    def _start_engine(self, name: str, setup: EngineSetup) -> _Engine:
        clock, wire, ids = StepClock(), Wire(name, self.traffic), self._ids(name)
        profile = setup.profile
        engine = SimEngine(
            setup.model,
            cost=profile.cost,
            clock=clock,
            max_num_seqs=profile.max_num_seqs,
            max_model_len=profile.max_model_len,
            block_size=profile.block_size,
            num_blocks=profile.num_blocks,
            true_cost=setup.true_cost,
            enable_prefix_caching=setup.prefix_caching,
            max_running_tokens=setup.max_running_tokens,
            max_num_batched_tokens=setup.max_num_batched_tokens,
            mean_output_tokens=setup.mean_output_tokens,
            now_s=self._loop.time,
        )

        steppers: list[StepTask] = []

        def make_stepper(make: Callable[[], EnginePort], deliver: Callable[[Event], None]) -> StepTask:
            def observe(event: Event) -> None:
                if isinstance(event, Stepped):
                    self.timings.note(self.now_s(), event.outputs)
                deliver(event)

            steppers.append(StepTask(make, observe, clock))
            return steppers[0]

        worker = EngineWorker(
            functools.partial(self._redis.open, wire, ids),
            lambda: engine,
            name=setup.model,
            kind="sim",
            settings=self._worker_settings,
            threaded_keeper=False,
            make_stepper=make_stepper,
        )
        task = self._group.create_task(_component(name, worker.run()), name=name)
        self._engines[name] = _Engine(engine, worker, wire, steppers[0], task)
        return self._engines[name]


async def _component(name: str, run: Coroutine[Any, Any, None]) -> None:
    """Run a part of the deployment. Its failure is the simulation's; that it was killed is not."""
    try:
        await run
    except Exception as error:
        raise SimulationError(f"{name} failed: {type(error).__name__}: {error}") from error
