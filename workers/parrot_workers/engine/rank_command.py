"""What the engine's process tells the other ranks: flat numbers, in the order of the steps."""

from __future__ import annotations

import array
import dataclasses
import enum
from collections.abc import Sequence

from parrot_workers.engine.step_batch import Span


class Action(enum.IntEnum):
    """ALLOCATE comes first, and again for another cache; PROBE is a step of the model's first layers."""

    ALLOCATE = 0
    STEP = 1
    PROBE = 2
    STOP = 3


@dataclasses.dataclass(frozen=True, slots=True)
class RankCommand:
    """ALLOCATE has ``sizes`` (blocks of the cache, tokens of a step), STEP and PROBE have ``spans``."""

    action: Action
    sizes: tuple[int, int] = (0, 0)
    spans: Sequence[Span] = ()

    def encode(self) -> bytes:
        """Return it as bytes. The spans travel without the rows they want: one rank makes the logits."""
        values = [self.action, *self.sizes, len(self.spans)]
        for span in self.spans:
            values += [span.start, len(span.token_ids), len(span.block_table), *span.token_ids, *span.block_table]
        return array.array("q", values).tobytes()

    @classmethod
    def decode(cls, data: bytes) -> RankCommand:
        """Return what was encoded."""
        values = array.array("q")
        values.frombytes(data)
        action, num_blocks, num_tokens, num_spans, *_ = values
        at, spans = 4, []
        for _ in range(num_spans):
            start, num_ids, num_table = values[at : at + 3]
            table = at + 3 + num_ids
            spans.append(Span(values[at + 3 : table].tolist(), start, 0, values[table : table + num_table].tolist()))
            at = table + num_table
        return cls(Action(action), (num_blocks, num_tokens), spans)
