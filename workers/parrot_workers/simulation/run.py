"""Running an application against a simulated deployment."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from parrot_mq.settings import SchedulerSettings, StoreSettings, WorkerSettings
from parrot_workers.simulation.errors import SimulationError
from parrot_workers.simulation.loop import VirtualLoop
from parrot_workers.simulation.setup import EngineSetup
from parrot_workers.simulation.virtual_time import installed
from parrot_workers.simulation.world import World

T = TypeVar("T")
LIMIT_S = 86_400.0
REAL_LIMIT_S = 900.0


def simulate(
    main: Callable[[World], Awaitable[T]],
    engines: Sequence[EngineSetup],
    *,
    seed: int = 0,
    scheduler: SchedulerSettings | None = None,
    store: StoreSettings | None = None,
    worker: WorkerSettings | None = None,
    tenant: str = "default",
    limit_s: float = LIMIT_S,
    real_limit_s: float = REAL_LIMIT_S,
) -> T:
    """Run ``main`` with the whole pipeline in virtual time, and return what it returns.

    SDK, scripts, scheduler and engine workers are the real ones; Redis is fakeredis, engines are simulated, and time
    passes only where somebody sleeps or an engine computes. The same ``seed`` gives the same run on any machine.
    ``main`` must not use threads, sockets or the machine's clock (``world.now_s`` is the time), nor iterate over sets
    of coroutines (``asyncio.as_completed``).

    Raises what ``main`` raises; ``OutOfTime`` after ``limit_s`` virtual and ``TooSlow`` after ``real_limit_s`` real
    seconds, ``Deadlock`` where nothing is scheduled any more, and ``SimulationError`` if a part of the deployment
    fails, or another simulation is under way.
    """
    loop = VirtualLoop(limit_s=limit_s, real_limit_s=real_limit_s)
    try:
        with installed(loop.time):
            try:
                return loop.run_main(
                    _run(
                        main,
                        engines,
                        seed,
                        scheduler or SchedulerSettings(),
                        store or StoreSettings(),
                        worker or WorkerSettings(),
                        tenant,
                    )
                )
            finally:
                loop.end()
    finally:
        loop.close()


async def _run(
    main: Callable[[World], Awaitable[T]],
    engines: Sequence[EngineSetup],
    seed: int,
    scheduler: SchedulerSettings,
    store: StoreSettings,
    worker: WorkerSettings,
    tenant: str,
) -> T:
    results: list[T] = []
    failures: list[Exception] = []
    try:
        async with asyncio.TaskGroup() as group:
            world = World(group, seed, scheduler, store, worker)
            try:
                await world.begin(engines, tenant)
                results.append(await main(world))
            except Exception as error:  # noqa: BLE001 - raised below: a task group would wrap it
                failures.append(error)
            finally:
                await world.finish()
    except* SimulationError as broken:
        failures.append(broken.exceptions[0])
    if failures:
        raise failures[-1]
    return results[0]
