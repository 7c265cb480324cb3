"""Reading the pipeline's state: variables, requests, sessions, engines, streams of tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Iterable, Sequence

from parrot_mq.errors import ErrorRecord
from parrot_mq.keys import ENGINES, by_partition
from parrot_mq.messages import EngineRecord, VariableState
from parrot_mq.store.answers import checked
from parrot_mq.store.connect import Store
from parrot_mq.store.partition import Partition
from parrot_mq.store.records import Outcome, RequestRecord, SessionRecord, TokenPiece, VariableRecord
from parrot_mq.store.streams import piece_of

BATCH_HASHES = 250
"""Hashes in one call of the script that reads them."""


class Reader:
    """Reads of one partition."""

    def __init__(self, partition: Partition) -> None:
        self.partition = partition

    async def variables(self, ids: Sequence[str], *, values: bool = True) -> list[VariableRecord | None]:
        """Return variables by id, None for unknown ones; with ``values``, large values too."""
        found = await self._hashes([self.partition.keys.variable(i) for i in ids])
        records = [
            VariableRecord.from_fields(i, fields) if fields else None for i, fields in zip(ids, found, strict=True)
        ]
        if not values:
            return records
        return [await self._with_value(record) if record and record.value_fence else record for record in records]

    async def outcomes(self, ids: Sequence[str]) -> list[Outcome | None]:
        """Return what became of variables, large values included; None for unknown ones."""
        found = await self.variable_fields(ids, ["state", "value", "error", "value_fence"])
        outcomes: list[Outcome | None] = []
        for variable_id, (state, value, error, fence) in zip(ids, found, strict=True):
            if not state:
                outcomes.append(None)
                continue
            if fence:
                value = await self._large(variable_id, fence)
            outcomes.append(
                Outcome(variable_id, VariableState(state), value, ErrorRecord.from_json(error) if error else None)
            )
        return outcomes

    async def variable(self, variable_id: str) -> VariableRecord | None:
        """Return one variable with its value, None if unknown."""
        return (await self.variables([variable_id]))[0]

    async def states(self, ids: Sequence[str]) -> list[VariableState | None]:
        """Return only the states of variables, None for unknown ones."""
        found = await self.variable_fields(ids, ["state"])
        return [VariableState(state) if state else None for (state,) in found]

    async def variable_fields(self, ids: Sequence[str], fields: Sequence[str]) -> list[list[str | None]]:
        """Return ``fields`` of the hash of each variable, None where there is none."""
        return await self._fields("var", ids, fields)

    async def request_fields(self, ids: Sequence[str], fields: Sequence[str]) -> list[list[str | None]]:
        """Return ``fields`` of the hash of each request, None where there is none."""
        return await self._fields("req", ids, fields)

    async def _with_value(self, record: VariableRecord) -> VariableRecord:
        return dataclasses.replace(record, value=await self._large(record.id, record.value_fence))

    async def _large(self, variable_id: str, fence: str) -> str | None:
        key = self.partition.keys.value(variable_id, fence)
        text: str | None = await self.partition.robust(lambda: self.partition.redis.get(key))
        return text

    async def requests(self, ids: Sequence[str]) -> list[RequestRecord | None]:
        """Return requests by id, None for unknown ones."""
        found = await self._hashes([self.partition.keys.request(i) for i in ids])
        return [RequestRecord.from_fields(i, fields) if fields else None for i, fields in zip(ids, found, strict=True)]

    async def request(self, request_id: str) -> RequestRecord | None:
        """Return one request, None if unknown."""
        return (await self.requests([request_id]))[0]

    async def session(self, session_id: str) -> SessionRecord | None:
        """Return a session, None if unknown."""
        (fields,) = await self._hashes([self.partition.keys.session(session_id)])
        return SessionRecord.from_fields(session_id, fields) if fields else None

    async def sessions(self) -> list[str]:
        """Return the ids of all sessions, soonest expiry first."""
        ids: list[str] = await self.partition.robust(
            lambda: self.partition.redis.zrange(self.partition.keys.sessions, 0, -1)
        )
        return ids

    async def session_ids(self, session_id: str) -> list[str]:
        """Return the ids of a session's variables and requests, sorted."""
        ids: set[str] = set()
        async for page in self.session_id_pages(session_id, 500):
            ids.update(page)
        return sorted(ids)

    async def session_id_pages(self, session_id: str, count: int) -> AsyncIterator[list[str]]:
        """Give the ids of a session's variables and requests in lists of up to ``count``; an id may come twice."""
        key = f"{self.partition.keys.session(session_id)}:ids"
        cursor = 0
        while True:
            where = cursor
            cursor, ids = await self.partition.robust(
                lambda where=where: self.partition.redis.sscan(key, where, count=count)  # type: ignore[misc]
            )
            for start in range(0, len(ids), count):
                yield ids[start : start + count]
            if cursor == 0:
                return

    async def live(self, start: int = 0, count: int = -1) -> list[str]:
        """Return ids of unfinished requests in submission order."""
        stop = -1 if count < 0 else start + count - 1
        ids: list[str] = await self.partition.robust(
            lambda: self.partition.redis.zrange(self.partition.keys.live, start, stop)
        )
        return ids

    async def waiters(self, variable_id: str) -> list[str]:
        """Return the ids of the requests that wait for a variable."""
        key = f"{self.partition.keys.variable(variable_id)}:wait"
        ids: list[str] = await self.partition.robust(lambda: self.partition.redis.zrange(key, 0, -1))
        return ids

    async def engine(self, engine_id: str) -> EngineRecord | None:
        """Return an engine's heartbeat, None if it has none (any more)."""
        (fields,) = await self._hashes([self.partition.keys.engine(engine_id)])
        return EngineRecord.from_fields(fields) if fields else None

    async def pieces(self, variable_id: str, after: str = "0", count: int = 1000) -> list[TokenPiece]:
        """Return pieces of a variable's output stream that come after the entry id ``after``."""
        key = self.partition.keys.tokens(variable_id)
        start = "-" if after in ("", "0") else f"({after}"
        entries = await self.partition.robust(lambda: self.partition.redis.xrange(key, start, "+", count))
        return [piece_of(entry_id, fields) for entry_id, fields in entries]

    async def next_pieces(self, variable_id: str, after: str, *, block_ms: int, count: int = 1000) -> list[TokenPiece]:
        """Wait up to ``block_ms`` for pieces of a variable's output stream that come after the entry id ``after``.

        A connection of its own waits. Raises redis-py's errors: a read that waits is not made again.
        """
        key = self.partition.keys.tokens(variable_id)
        answer = await self.partition.blocking.xread({key: after}, count=count, block=max(1, block_ms))
        return [piece_of(entry_id, fields) for entry_id, fields in (answer[0][1] if answer else [])]

    async def _hashes(self, keys: Sequence[str]) -> list[dict[str, str]]:
        if not keys:
            return []

        async def run() -> list[dict[str, str]]:
            async with self.partition.redis.pipeline(transaction=False) as pipe:
                for key in keys:
                    pipe.hgetall(key)
                found: list[dict[str, str]] = await pipe.execute()
                return found

        return await self.partition.robust(run)

    async def _fields(self, kind: str, ids: Sequence[str], fields: Sequence[str]) -> list[list[str | None]]:
        """Return fields of the hashes ``..<kind>:<id>``: by a script, of which a command costs a tenth of one in a
        pipeline.
        """
        found: list[list[str | None]] = []
        for start in range(0, len(ids), BATCH_HASHES):
            part = ids[start : start + BATCH_HASHES]
            (answers,) = checked(await self.partition.call("read", f"{kind}:", " ".join(fields), *part))
            found += answers
        return found


async def variables_at_home(store: Store, ids: Iterable[str]) -> list[VariableRecord]:
    """Return those of the variables that are known, each from its own partition, large values left out."""
    found: list[VariableRecord | None] = []
    for part in by_partition(ids):
        found += await Reader(store.of(part[0])).variables(part, values=False)
    return [record for record in found if record is not None]


async def requests_at_home(store: Store, ids: Iterable[str]) -> list[RequestRecord]:
    """Return those of the requests that are known, each from its own partition."""
    found: list[RequestRecord | None] = []
    for part in by_partition(ids):
        found += await Reader(store.of(part[0])).requests(part)
    return [record for record in found if record is not None]


async def engines(store: Store) -> dict[str, EngineRecord | None]:
    """Return every engine that was ever listed and not yet forgotten, with its heartbeat (None: dead)."""
    ids: list[str] = await store.partitions[0].robust(lambda: store.client.zrange(ENGINES, 0, -1))
    reader = Reader(store.partitions[0])
    found = await reader._hashes([store.partitions[0].keys.engine(i) for i in ids])
    return {i: EngineRecord.from_fields(fields) if fields else None for i, fields in zip(ids, found, strict=True)}
