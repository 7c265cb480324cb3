"""``simulate``: the whole pipeline in virtual time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import parrot_mq as P
from parrot_workers.simulation import (
    Deadlock,
    EngineSetup,
    OutOfTime,
    Profile,
    SimulationError,
    TooSlow,
    World,
    simulate,
)

Application = Callable[..., Awaitable[tuple[str, float]]]


def test_a_chain_takes_what_its_steps_cost(one_engine: list[EngineSetup], run_chain: Application) -> None:
    _, duration_s = simulate(lambda world: run_chain(world, 5), one_engine)
    # 5 x 25 tokens of at least 20.2 ms each, and about 470 tokens of prompt at 0.1 ms each, some of them cached
    assert 125 * 0.0202 < duration_s < 125 * 0.0215 + 5 * 0.06


def test_maps_run_in_one_batch(one_engine: list[EngineSetup], run_map_reduce: Application) -> None:
    _, duration_s = simulate(run_map_reduce, one_engine)
    one_by_one_s = (4 * 25 + 50) * 0.0202
    assert duration_s < one_by_one_s * 0.6


def test_the_same_seed_gives_the_same_run(one_engine: list[EngineSetup], run_map_reduce: Application) -> None:
    async def main(world: World) -> Any:
        result = await run_map_reduce(world)
        return result, world.traffic.num_commands, world.engines[0].stats(), world.random.random()

    first, again, other = (simulate(main, one_engine, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first[-1] != other[-1]


def test_time_passes_where_somebody_sleeps_and_nowhere_else(one_engine: list[EngineSetup]) -> None:
    async def main(world: World) -> tuple[float, float]:
        began_s = world.now_s()
        await asyncio.sleep(200)
        return world.now_s() - began_s, began_s

    slept_s, began_s = simulate(main, one_engine)
    assert slept_s == 200
    assert began_s < 1


def test_the_machines_clock_is_back_afterwards(one_engine: list[EngineSetup]) -> None:
    from parrot_mq.store import partition

    async def main(world: World) -> bool:
        return partition.time.monotonic() == world.now_s()

    assert simulate(main, one_engine)
    assert partition.time is time


def test_an_error_of_the_application_is_raised(one_engine: list[EngineSetup]) -> None:
    async def main(world: World) -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        simulate(main, one_engine)


def test_an_application_that_never_ends_is_ended(one_engine: list[EngineSetup]) -> None:
    async def wait_for_ever(world: World) -> None:
        await asyncio.Event().wait()

    with pytest.raises(OutOfTime, match=r"after 50 virtual seconds.*\n.*wait_for_ever"):
        simulate(wait_for_ever, one_engine, limit_s=50)


def test_a_simulation_that_takes_too_long_is_ended(one_engine: list[EngineSetup]) -> None:
    async def spin(world: World) -> None:
        for _ in range(10_000_000):
            await asyncio.sleep(0)

    with pytest.raises(TooSlow, match="spin"):
        simulate(spin, one_engine, real_limit_s=0.2)


def test_a_world_without_anything_scheduled_is_a_deadlock() -> None:
    from parrot_workers.simulation.loop import VirtualLoop

    async def wait_for_nothing() -> None:
        await asyncio.get_running_loop().create_future()

    loop = VirtualLoop(limit_s=10, real_limit_s=10)
    with pytest.raises(Deadlock, match="wait_for_nothing"):
        loop.run_main(wait_for_nothing())
    loop.end()


def test_one_simulation_at_a_time(one_engine: list[EngineSetup]) -> None:
    async def inner(world: World) -> None:
        pass

    async def main(world: World) -> None:
        simulate(inner, one_engine)

    with pytest.raises(SimulationError, match="under way"):
        simulate(main, one_engine)


def test_several_engines_share_the_work(profile: Profile) -> None:
    @P.semantic_function
    def tell(topic: P.Input, story: P.Output = P.output(max_tokens=40, ignore_eos=True)) -> None:
        """Tell a story about {{topic}}:{{story}}"""

    async def main(world: World) -> tuple[list[str], list[int]]:
        async with world.client.session():
            stories = await P.gather(P.map(tell, [f"number {n}" for n in range(24)]), perf=P.THROUGHPUT)
        return stories, [engine.stats().num_generated_tokens for engine in world.engines]

    stories, tokens = simulate(main, [EngineSetup(profile, count=3)])
    assert len(set(stories)) == 24
    assert sum(tokens) == 24 * 40
    assert all(tokens)
