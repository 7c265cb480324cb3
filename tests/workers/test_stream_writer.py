"""Pieces of many runs go together, each stream in order, whatever happens to Redis or to the runs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import pytest

from parrot_mq.errors import Fenced, Overloaded, StoreError
from parrot_mq.messages import RequestSpec
from parrot_mq.store.emission import Emission
from parrot_mq.store.records import Claim
from parrot_workers.engine.port import SequenceOutput
from parrot_workers.worker.plan import Plan
from parrot_workers.worker.run import Run
from parrot_workers.worker.stream_writer import StreamWriter

FAR_S = 3600.0


class FakeStore:
    """Takes calls one at a time, each once ``open`` is set; ``answer`` may refuse."""

    def __init__(self) -> None:
        self.calls: list[list[Emission]] = []
        self.begun = 0
        self.open = asyncio.Event()
        self.open.set()
        self.failures: list[StoreError] = []
        self.refused: dict[str, StoreError] = {}

    async def emit_many(self, pieces: Sequence[Emission]) -> list[StoreError | None]:
        self.begun += 1
        await self.open.wait()
        if self.failures:
            raise self.failures.pop(0)
        self.calls.append(list(pieces))
        return [self.refused.get(piece.request) for piece in pieces]

    def of(self, run: Run) -> list[tuple[int, str]]:
        return [(p.offset, p.text) for call in self.calls for p in call if p.request == run.claim.request]


class Desk:
    """A writer, its store, and the runs that it found to be somebody else's."""

    def __init__(self, group: asyncio.TaskGroup, interval_s: float) -> None:
        self.store = FakeStore()
        self.fenced: list[Run] = []
        self.writer = StreamWriter(cast(Any, self.store), group, interval_s, self._drop)
        self._count = 0

    def _drop(self, run: Run, reason: str) -> None:
        run.dropped = True
        self.fenced.append(run)

    def run(self) -> Run:
        self._count += 1
        claim = Claim(f"r{self._count}", "1.a", 1, "s", "t", "{}", (), streamed=True)
        spec = RequestSpec("", "", "", "", 0, {}, "", "")
        return Run(claim, spec, Plan.from_json("{}"), cast(Any, self.store), 0.0, 0.0, streamed=True)

    def say(self, run: Run, text: str) -> None:
        run.transcript.add(SequenceOutput(run.id, tuple(map(ord, text)), text))
        self.writer.note(run)


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_what_comes_at_once_goes_in_one_call_and_what_comes_meanwhile_in_the_next() -> None:
    async with asyncio.TaskGroup() as group:
        desk = Desk(group, 0.0)
        first, second, late = desk.run(), desk.run(), desk.run()
        desk.store.open.clear()
        desk.say(first, "a")
        desk.say(second, "b")
        await settled()
        assert desk.store.begun == 1
        desk.say(late, "c")
        desk.say(first, "d")
        desk.say(first, "e")
        await settled()
        assert desk.store.begun == 1
        desk.store.open.set()
        await desk.writer.flush(late)
        assert [[piece.text for piece in call] for call in desk.store.calls] == [["a", "b"], ["c", "de"]]
        assert desk.store.of(first) == [(0, "a"), (1, "de")]


async def test_a_stream_waits_for_its_interval_and_another_one_begins_at_once() -> None:
    async with asyncio.TaskGroup() as group:
        desk = Desk(group, FAR_S)
        first, second = desk.run(), desk.run()
        desk.say(first, "a")
        await settled()
        desk.say(first, "b")
        desk.say(second, "c")
        await settled()
        assert desk.store.of(first) == [(0, "a")]
        assert desk.store.of(second) == [(0, "c")]
        await desk.writer.flush(first)
        assert desk.store.of(first) == [(0, "a"), (1, "b")]


async def test_streams_fall_into_step(eventually: Any) -> None:
    async with asyncio.TaskGroup() as group:
        desk = Desk(group, 0.1)
        first, second = desk.run(), desk.run()

        async def third_call() -> bool:
            return len(desk.store.calls) == 3

        desk.say(first, "a")
        await asyncio.sleep(0.01)
        desk.say(second, "b")
        await settled()
        desk.say(first, "c")
        desk.say(second, "d")
        await eventually(third_call)
        assert [[piece.text for piece in call] for call in desk.store.calls] == [["a"], ["b"], ["c", "d"]]


async def test_the_same_pieces_again_while_redis_is_full() -> None:
    async with asyncio.TaskGroup() as group:
        desk = Desk(group, 0.0)
        first, second = desk.run(), desk.run()
        desk.store.failures = [Overloaded("full", 0.001), Overloaded("full", 0.001)]
        desk.say(first, "a")
        desk.say(second, "b")
        await settled()
        desk.say(first, "c")
        await desk.writer.flush(first)
        assert [[piece.text for piece in call] for call in desk.store.calls] == [["a", "b"], ["c"]]
        assert not desk.fenced


async def test_a_run_of_somebody_else_is_fenced_and_the_others_go_on() -> None:
    async with asyncio.TaskGroup() as group:
        desk = Desk(group, 0.0)
        ours, theirs = desk.run(), desk.run()
        desk.store.refused[theirs.claim.request] = Fenced("not yours")
        desk.say(theirs, "a")
        desk.say(ours, "b")
        await desk.writer.flush(ours)
        desk.say(ours, "c")
        desk.say(theirs, "d")
        await desk.writer.flush(theirs)
        await desk.writer.flush(ours)
        assert desk.fenced == [theirs]
        assert desk.store.of(theirs) == [(0, "a")]
        assert desk.store.of(ours) == [(0, "b"), (1, "c")]


@pytest.mark.parametrize("how", ["dropped", "left the engine"])
async def test_nothing_is_written_for_a_run_that_is_gone(how: str) -> None:
    async with asyncio.TaskGroup() as group:
        desk = Desk(group, 0.0)
        gone = desk.run()
        desk.say(gone, "a")
        if how == "dropped":
            gone.dropped = True
        else:
            gone.in_engine = False
        await settled()
        assert desk.store.begun == 0
        await desk.writer.flush(gone)
        assert desk.store.of(gone) == ([] if how == "dropped" else [(0, "a")])
    desk.say(gone, "b")  # after the worker's end there is nobody to write it, and no error
    await settled()
