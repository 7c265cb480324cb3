"""Faults at every few calls to Redis: nothing is lost or visibly done twice, and the faults really happened."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable

import pytest

import parrot_mq as P
from parrot_mq.messages import RequestState
from parrot_mq.settings import StoreSettings
from parrot_mq.store import Reader
from parrot_workers.simulation import EngineSetup, Loss, Profile, World, simulate

Inject = Callable[[World, int], None]
QUICK = StoreSettings(lease_s=2.0, heartbeat_ttl_s=1.0)


@P.semantic_function
def draft(topic: P.Input, text: P.Output = P.output(max_tokens=8, ignore_eos=True)) -> None:
    """Write about {{topic}}:{{text}}"""


@P.semantic_function
def combine(
    left: P.Input,
    right: P.Input,
    text: P.Output = P.output(max_tokens=8, ignore_eos=True),
    title: P.Output = P.output(max_tokens=8, ignore_eos=True),
) -> None:
    """Combine {{left}} and {{right}}:{{text}} Title:{{title}}"""


@dataclasses.dataclass(frozen=True)
class Ran:
    """What came out of a run: the values, how often each request was done, its state, commands before and after."""

    values: list[str]
    done: Counter[str]
    states: list[RequestState]
    first_command: int
    last_command: int
    num_fired: int


async def application(world: World) -> list[str]:
    async with world.client.session() as session:
        story = session.variable("a parrot", name="topic")
        for _ in range(3):
            story = draft(story)
        drafts = P.map(draft, ["owls", "larks", "wrens"])
        both = combine(drafts[0], drafts[1])
        streamed = "".join([piece async for piece in drafts[2].stream()])
        return [*await P.gather(story, both.text, both.title, drafts), streamed]


def run(profile: Profile, inject: Inject | None = None, at: int = 0, engines: int = 2) -> Ran:
    async def main(world: World) -> Ran:
        await world.add_scheduler()
        first = world.traffic.num_commands + 1
        if inject is not None:
            inject(world, at)
        values = await application(world)
        last, fired = world.traffic.num_commands, world.traffic.num_fired
        reader = Reader(world.client.store.partition(0))
        done: Counter[str] = Counter()
        for _, fields in await world.client.store.client.xrange(reader.partition.keys.events):
            if fields["event"] == "done":
                done.update(fields["id"].split())
        records = await reader.requests(list(done))
        states = [record.state for record in records if record is not None]
        return Ran(values, done, states, first, last, fired)

    return simulate(main, [EngineSetup(profile, count=engines)], store=QUICK, limit_s=300, real_limit_s=60)


def kill_an_engine(world: World, at: int) -> None:
    world.traffic.actions[at] = lambda: world.kill_engine("engine-0")


def cut_an_engine_off(world: World, at: int) -> None:
    world.traffic.actions[at] = lambda: world.partition_engine("engine-1", for_s=3.0)


def replace_the_scheduler(world: World, at: int) -> None:
    world.traffic.actions[at] = lambda: world.kill_scheduler("scheduler-0")


def lose_a_request(world: World, at: int) -> None:
    world.traffic.losses[at] = Loss.REQUEST


def lose_a_reply(world: World, at: int) -> None:
    world.traffic.losses[at] = Loss.REPLY


@pytest.fixture(scope="module")
def undisturbed() -> Ran:
    """The application without faults."""
    from parrot_mq.messages import CostModel

    return run(Profile("test", "for tests", CostModel(0.1, 20.0, 0.2, 0.001), 4000, 16, 8, 8192, {}))


def test_the_application_without_faults(undisturbed: Ran) -> None:
    assert len(undisturbed.values) == 7
    assert all(len(value.split()) == 8 for value in undisturbed.values)
    assert undisturbed.values[-1] == undisturbed.values[-2]
    assert len(undisturbed.done) == 8
    assert undisturbed.num_fired == 0


@pytest.mark.parametrize(
    "inject", [kill_an_engine, cut_an_engine_off, replace_the_scheduler, lose_a_request, lose_a_reply]
)
def test_a_fault_at_every_few_calls_loses_and_doubles_nothing(
    profile: Profile, undisturbed: Ran, inject: Inject
) -> None:
    offsets = range(undisturbed.first_command, undisturbed.last_command, 4)
    assert len(offsets) > 20
    for at in offsets:
        ran = run(profile, inject, at)
        assert ran.num_fired == 1, f"nothing happened at command {at}"
        assert ran.values == undisturbed.values, f"a fault at command {at} changed what came out"
        assert set(ran.done.values()) == {1}, f"a fault at command {at}: {ran.done}"
        assert len(ran.done) == len(undisturbed.done)
        assert set(ran.states) == {RequestState.DONE}
