"""Chats beside map-reduces on a few engines: both kinds of work get what they need, with no bound set by hand."""

from __future__ import annotations

import asyncio
import dataclasses
import statistics

import parrot_mq as P
from parrot_mq.messages import CostModel
from parrot_workers.simulation import EngineSetup, Profile, World, simulate

NUM_ENGINES, NUM_CHATS, NUM_MAPS = 4, 10, 100


@P.semantic_function
def answer(question: P.Input, text: P.Output = P.output(max_tokens=200, ignore_eos=True)) -> None:
    """{{question}}{{text}}"""


@P.semantic_function
def note(chunk: P.Input, summary: P.Output = P.output(max_tokens=30, ignore_eos=True)) -> None:
    """Summarise this: {{chunk}}{{summary}}"""


@dataclasses.dataclass(frozen=True)
class Figures:
    """``chat_ms``: between two tokens of a chat, in the mean; ``work_s``: until all throughput work is done."""

    chat_ms: float
    work_s: float


def run(profile: Profile, *, chats: int, waves: int) -> Figures:
    """Run a chat each half second, and waves of throughput work that need most of the engines, one each 6 s."""

    async def talk(world: World, number: int) -> float:
        await asyncio.sleep(number / 2)
        stream = answer(f"question {number}? " + "well " * 40).stream(perf=P.TTFT, timeout_s=600)
        times = [world.now_s() async for _ in stream]
        return 1000 * (times[-1] - times[0]) / (len(times) - 1)

    async def work(world: World, number: int) -> float:
        await asyncio.sleep(6 * number)
        chunks = [f"chapter {number} {n}: " + "and then " * 400 for n in range(NUM_MAPS)]
        await asyncio.gather(*(part.get(perf=P.THROUGHPUT, timeout_s=600) for part in P.map(note, chunks)))
        return world.now_s()

    async def main(world: World) -> Figures:
        async with world.client.session():
            began_s = world.now_s()
            talks = asyncio.gather(*(talk(world, number) for number in range(chats)))
            ends_s = await asyncio.gather(*(work(world, number) for number in range(waves)))
            return Figures(statistics.fmean(await talks or [0.0]), max(ends_s, default=began_s) - began_s)

    return simulate(main, [EngineSetup(profile, count=NUM_ENGINES)], limit_s=600)


def test_chats_hardly_notice_throughput_work_that_goes_on(profile: Profile) -> None:
    cost = CostModel(0.15, 27.5, 0.24, 0.0007, overlap=0.9)
    profile = dataclasses.replace(profile, cost=cost)
    alone, work, both = (run(profile, chats=c, waves=w) for c, w in ((NUM_CHATS, 0), (0, 3), (NUM_CHATS, 3)))
    assert both.chat_ms <= 1.1 * alone.chat_ms
    assert both.work_s <= 1.15 * work.work_s
