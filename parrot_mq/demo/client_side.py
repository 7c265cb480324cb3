"""The same application driven request by request from a client, as it is without a service that sees the graph.

Each call is one request that the client waits for, over a network whose round trip takes 218 to 345 ms, half of it
each way (the delay of the reference's experiments; Parrot, OSDI'24, section 8.1). Maps go out together, everything
else when its inputs have come back.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import TypeAlias

import parrot_mq as P
from parrot_mq.demo.app import extend_notes, groups_of, merge_notes, note_chunk
from parrot_mq.demo.meetings import NOTHING

NoteFunction: TypeAlias = P.SemanticFunction[..., P.SemanticVariable]

MIN_ROUND_TRIP_S = 0.218
MAX_ROUND_TRIP_S = 0.345


class Network:
    """The way between a client and the service: an exchange takes a random round trip, half each way."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def half_trip_s(self) -> float:
        """Seconds one way of the next exchange takes; both ways take the same."""
        return self._random.uniform(MIN_ROUND_TRIP_S, MAX_ROUND_TRIP_S) / 2


class ClientSide:
    """An application that knows functions, not graphs. ``on_call`` is told the stage and the variable of each call."""

    def __init__(
        self, session: P.Session, network: Network, on_call: Callable[[str, P.SemanticVariable], None]
    ) -> None:
        self._session = session
        self._network = network
        self._on_call = on_call

    async def call(self, stage: str, function: NoteFunction, *texts: str) -> str:
        """Send one request over the network and wait for its answer."""
        half_s = self._network.half_trip_s()
        await asyncio.sleep(half_s)
        answer = function(*texts, session=self._session)
        self._on_call(stage, answer)
        text = await answer.get()
        await asyncio.sleep(half_s)
        return text

    async def map_reduce(self, chunks: Sequence[str]) -> str:
        """Note every chunk, then merge eight at a time: the answers of a level come back before the next goes out."""
        level = await asyncio.gather(*(self.call("map", note_chunk, chunk) for chunk in chunks))
        depth = 0
        while len(level) > 1:
            depth += 1
            level = await asyncio.gather(*(self._merge(f"reduce {depth}", group) for group in groups_of(level)))
        return level[0]

    async def chain(self, chunks: Sequence[str]) -> str:
        """Read the chunks one after the other."""
        notes = NOTHING
        for chunk in chunks:
            notes = await self.call("chain", extend_notes, chunk, notes)
        return notes

    async def _merge(self, stage: str, group: Sequence[str]) -> str:
        return await self.call(stage, merge_notes[len(group)], *group) if len(group) > 1 else group[0]
