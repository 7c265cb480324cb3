"""The scheduler of a simulation: its decision log can be replayed, and it answers who asks, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import parrot_mq as P
from parrot_mq.messages import RequestState
from parrot_mq.scheduler.replay import replay
from parrot_mq.settings import SchedulerSettings
from parrot_workers.simulation import EngineSetup, Profile, World, simulate

Application = Callable[..., Awaitable[Any]]


def test_every_decision_of_a_simulation_comes_out_the_same(
    profile: Profile, run_chain: Application, run_map_reduce: Application, tmp_path: Path
) -> None:
    path = tmp_path / "decisions.jsonl"

    async def main(world: World) -> None:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(4):
                tasks.create_task(run_chain(world, 4))
                tasks.create_task(run_map_reduce(world))
                await asyncio.sleep(world.random.random() * 2)

    simulate(main, [EngineSetup(profile, count=3)], scheduler=SchedulerSettings(decision_log=str(path)))
    replayed = replay(path)
    assert replayed.difference is None
    assert replayed.num_placements >= 4 * (4 + 5) - 8  # equal requests of two programs may run as one, at the most
    assert b'"orders"' in path.read_bytes()


def test_what_keeps_a_request_can_be_asked(one_engine: list[EngineSetup], run_map_reduce: Application) -> None:
    async def main(world: World) -> tuple[P.Explanation, float]:
        async with world.client.session(), asyncio.TaskGroup() as tasks:
            tasks.create_task(run_map_reduce(world))
            await asyncio.sleep(0.2)
            by_hand = P.SemanticVariable(name="notes")
            summary = _echo(_echo(by_hand))
            await summary.published()
            began_s = world.now_s()
            explanation = await summary.explain()
            return explanation, world.now_s() - began_s

    explanation, took_s = simulate(main, one_engine)
    assert explanation.note == ""
    assert explanation.producer is not None
    assert explanation.producer.standing is not None
    assert explanation.producer.standing.state is RequestState.WAITING
    (first,) = explanation.waits_for
    assert [waiting.name for waiting in first.waits_for] == ["notes"]
    assert took_s < 0.1


@P.semantic_function
def _echo(text: P.Input, again: P.Output = P.output(max_tokens=5)) -> None:
    """Say it again: {{text}}. Again:{{again}}"""
