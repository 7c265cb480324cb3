"""Pieces of output streams on the wire: many in one script call, each answered by itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from parrot_mq.errors import StoreError
from parrot_mq.store.answers import checked, refusal
from parrot_mq.store.partition import Partition

MAX_PIECES = 64
"""Pieces in one script call: Redis serves nobody else meanwhile."""
MAX_CHARACTERS = 1 << 18
"""Text in one script call, unless a single piece is longer."""


@dataclasses.dataclass(frozen=True, slots=True)
class Emission:
    """What ``emit`` appends to the stream of a request's output; ``offset`` counts the output tokens before it."""

    request: str
    fence: str
    offset: int
    token_ids: tuple[int, ...]
    text: str

    def to_args(self) -> tuple[str | int, ...]:
        """Return the script's arguments."""
        return self.request, self.fence, self.offset, " ".join(map(str, self.token_ids)), self.text


def _parts(pieces: Sequence[Emission]) -> Iterator[list[Emission]]:
    """Give the pieces in calls of a bounded size."""
    part: list[Emission] = []
    num_characters = 0
    for piece in pieces:
        if part and (len(part) == MAX_PIECES or num_characters + len(piece.text) > MAX_CHARACTERS):
            yield part
            part, num_characters = [], 0
        part.append(piece)
        num_characters += len(piece.text)
    if part:
        yield part


async def emit_many(partition: Partition, pieces: Sequence[Emission]) -> list[StoreError | None]:
    """Append pieces, at most one of each stream; returns what each was refused with, None where it was not."""
    refusals: list[StoreError | None] = []
    for part in _parts(pieces):
        (answers,) = checked(await partition.call("emit", *(arg for piece in part for arg in piece.to_args())))
        refusals += map(refusal, answers)
    return refusals
