"""Output streams as they are read: many in one script call."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from parrot_mq.messages import VariableState
from parrot_mq.store.answers import checked
from parrot_mq.store.partition import Partition
from parrot_mq.store.records import TokenPiece

MAX_STREAMS = 64
MAX_PIECES = 500
"""Streams, and pieces of all of them, in one script call: Redis serves nobody else meanwhile."""


@dataclasses.dataclass(frozen=True, slots=True)
class StreamPart:
    """What came in a variable's output stream after some entry, and the variable's state (None: unknown) at that time.

    ``is_cut``: there may be more.
    """

    state: VariableState | None
    pieces: tuple[TokenPiece, ...]
    is_cut: bool


def piece_of(entry_id: str, fields: Mapping[str, str]) -> TokenPiece:
    """Return an entry of a stream as a record."""
    return TokenPiece(
        entry_id,
        fields.get("fence", ""),
        int(fields.get("offset", 0)),
        tuple(map(int, fields.get("ids", "").split())),
        fields.get("text", ""),
        "last" in fields,
    )


async def read_streams(partition: Partition, places: Sequence[tuple[str, str]]) -> list[StreamPart]:
    """Return what came in the output streams of variables.

    Each place is a variable and the entry id ("0": the beginning) after which to read.
    """
    parts: list[StreamPart] = []
    for start in range(0, len(places), MAX_STREAMS):
        args = [arg for place in places[start : start + MAX_STREAMS] for arg in place]
        (answers,) = checked(await partition.call("streams", MAX_PIECES, *args))
        for state, entries, more in answers:
            pieces = tuple(piece_of(i, dict(zip(flat[::2], flat[1::2], strict=True))) for i, flat in entries)
            parts.append(StreamPart(VariableState(state) if state else None, pieces, more == "1"))
    return parts
