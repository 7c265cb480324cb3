"""Completions on the wire: many in one script call, each answered by itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import orjson

from parrot_mq.errors import StoreError
from parrot_mq.store.answers import checked, refusal
from parrot_mq.store.partition import Partition
from parrot_mq.store.records import Usage, Value

MAX_COMPLETIONS = 32
"""Completions in one script call: Redis serves nobody else meanwhile."""


@dataclasses.dataclass(frozen=True, slots=True)
class Completion:
    """What ``complete`` writes: ``value`` for the variable ``output``, and ``raw``, the text before the transform."""

    request: str
    fence: str
    output: str
    value: Value
    usage: Usage
    raw: Value | None = None

    def to_args(self) -> tuple[str | int, ...]:
        """Return the script's arguments."""
        value, raw, usage = self.value, self.raw, self.usage
        return (
            self.request, self.fence, value.inline, value.fence, value.size_bytes, value.digest, value.tokens_text,
            value.tokens_by, orjson.dumps(usage).decode(), usage.num_output_tokens,
            *(("", "", "") if raw is None else ("1", raw.inline, raw.fence)),
        )  # fmt: skip


async def complete_many(partition: Partition, completions: Sequence[Completion]) -> list[StoreError | None]:
    """Write completions; returns what each was refused with, None where it was not."""
    for done in completions:
        await partition.stage(done.output, done.value)
        if done.raw is not None:
            await partition.stage(done.output, done.raw, raw=True)
    refusals: list[StoreError | None] = []
    for start in range(0, len(completions), MAX_COMPLETIONS):
        part = completions[start : start + MAX_COMPLETIONS]
        (answers,) = checked(await partition.call("complete", *(arg for done in part for arg in done.to_args())))
        refusals += map(refusal, answers)
    return refusals
