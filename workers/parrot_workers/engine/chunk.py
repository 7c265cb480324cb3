"""What a step computes of one sequence."""

from __future__ import annotations

import dataclasses

from parrot_workers.engine.ngram_index import Draft
from parrot_workers.engine.sequence import Sequence

UNKNOWN_ID = 0
"""Stands for a token that is still being computed: any id that exists."""


@dataclasses.dataclass(frozen=True, slots=True)
class Chunk:
    """``num_tokens`` tokens of ``sequence`` from ``start`` on, and the ``draft`` of what may follow them.

    ``samples`` if the sequence's next token comes out of it: then each drafted token gives a row of logits too.
    ``sampled_row`` if its one token is still being computed: the row of the step before that samples it.
    """

    sequence: Sequence
    start: int
    num_tokens: int
    samples: bool
    draft: Draft | None = None
    sampled_row: int | None = None

    @property
    def num_rows(self) -> int:
        """Rows of logits wanted at its end."""
        return self.samples * (1 + (len(self.draft.token_ids) if self.draft else 0))

    @property
    def is_prefill(self) -> bool:
        """Whether these are tokens of a prompt, or some that were computed before and given up."""
        return self.start < self.sequence.num_prompt_tokens or self.num_tokens > 1

    @property
    def token_ids(self) -> list[int]:
        """What the model is given."""
        if self.sampled_row is not None:
            return [UNKNOWN_ID]
        token_ids = self.sequence.token_ids[self.start : self.start + self.num_tokens]
        return token_ids + self.draft.token_ids if self.draft else token_ids
