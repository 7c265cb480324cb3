"""Reading the output streams of one partition, many in a call."""

from __future__ import annotations

from collections.abc import Sequence

from parrot_mq.messages import Objective, VariableState
from parrot_mq.store.joined import Joined, Spawn
from parrot_mq.store.partition import Partition
from parrot_mq.store.producer import BATCH_IDS, ProducerStore
from parrot_mq.store.streams import MAX_STREAMS, StreamPart, read_streams


class Taps:
    """What readers of streams ask of Redis. A message tells of many streams that have grown, so they ask together."""

    def __init__(self, partition: Partition, spawn: Spawn) -> None:
        self._partition = partition
        self._wants = Joined(self._want_all, BATCH_IDS, spawn)
        self._reads = Joined(self._read_all, MAX_STREAMS, spawn)

    async def want(self, variable_id: str, objective: Objective) -> VariableState | None:
        """Have an output streamed; return the variable's state, None if it is unknown."""
        return await self._wants((variable_id, objective))

    async def read(self, variable_id: str, after: str) -> StreamPart:
        """Return what came after the entry ``after`` ("0": all)."""
        return await self._reads((variable_id, after))

    async def _want_all(self, items: Sequence[tuple[str, Objective]]) -> list[VariableState | None]:
        return await ProducerStore(self._partition).wants(items, stream=True)

    async def _read_all(self, places: Sequence[tuple[str, str]]) -> list[StreamPart]:
        return await read_streams(self._partition, places)
