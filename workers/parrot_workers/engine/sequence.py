"""A request inside the engine."""

from __future__ import annotations

import enum
import hashlib

from parrot_mq.messages import ObjectiveKind
from parrot_workers.engine.detokenizer import Detokenizer
from parrot_workers.engine.ngram_index import Draft, NgramIndex
from parrot_workers.engine.port import FinishReason, SequenceInput

_STRICTNESS = {kind: -index for index, kind in enumerate(ObjectiveKind)}
"""ObjectiveKind goes from the least to the most strict; the strictest is served first."""


class SequenceStatus(enum.StrEnum):
    """Life of a sequence: waiting -> running -> finished, with preempted -> running as often as memory demands."""

    WAITING = "waiting"
    RUNNING = "running"
    PREEMPTED = "preempted"
    FINISHED = "finished"


class Sequence:
    """Token ids of one request, and how far the model has come with them. Owned by the engine's thread.

    ``token_ids`` is the prompt followed by the output. Keys and values of the first ``num_computed_tokens`` of them lie
    in the blocks of ``block_table``; a step that computes all of them samples the next one.
    """

    def __init__(
        self,
        source: SequenceInput,
        prompt_ids: list[int],
        detokenizer: Detokenizer,
        *,
        arrival: int,
        max_output_tokens: int,
        stop_ids: frozenset[int],
    ) -> None:
        self.source = source
        self.sampling = source.sampling
        self.objective = source.objective
        self.token_ids = list(prompt_ids)
        self.num_prompt_tokens = len(prompt_ids)
        self.detokenizer = detokenizer
        self.arrival = arrival
        self.place: tuple[float, int] = (source.rank, arrival)
        """Rank and age in the queue: its own, or those of the first of its task group."""
        self.max_output_tokens = max_output_tokens
        """``max_tokens``, or what the model's length leaves."""
        self.stop_ids = stop_ids
        """Ids that end the output: the stop tokens and, unless ignored, the end-of-sequence ones."""
        self.seed = source.sampling.seed if source.sampling.seed is not None else seed_of(source.id)
        self.status = SequenceStatus.WAITING
        self.finish: FinishReason | None = None
        self.block_table: list[int] = []
        self.block_hashes: list[bytes] = []
        """Chained hashes of the full blocks of ``token_ids``, as far as they have been asked for."""
        self.num_published_blocks = 0
        """Leading blocks of the table that are in the prefix cache, or known to have a twin there."""
        self.num_computed_tokens = 0
        self.num_cached_tokens = 0
        """Prompt tokens found in the prefix cache at the first admission."""
        self.was_admitted = False
        self._ngrams: NgramIndex | None = None

    @property
    def id(self) -> str:
        """The id its owner gave it."""
        return self.source.id

    @property
    def num_tokens(self) -> int:
        """Prompt and output tokens."""
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Output tokens, a stop token included."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def output_ids(self) -> list[int]:
        """The output tokens."""
        return self.token_ids[self.num_prompt_tokens :]

    @property
    def is_finished(self) -> bool:
        """Whether it has left the engine, whatever is still being computed for it."""
        return self.status is SequenceStatus.FINISHED

    @property
    def num_remaining_tokens(self) -> int:
        """Tokens that the output may still get."""
        return self.max_output_tokens - self.num_output_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens the model has yet to see before the next can be sampled."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def is_adjusted(self) -> bool:
        """Whether the next token's logits are changed by what came before, or by a bias."""
        sampling = self.sampling
        return bool(
            sampling.logit_bias
            or sampling.repetition_penalty != 1
            or sampling.presence_penalty
            or sampling.frequency_penalty
            or self.num_output_tokens < sampling.min_tokens
        )

    @property
    def order(self) -> tuple[int, float, int, int]:
        """Sort key: the strictest objective first, then rank, then age; members of a task group side by side."""
        return _STRICTNESS[self.objective], *self.place, self.arrival

    def draft(self, num_tokens: int) -> Draft | None:
        """Return at most ``num_tokens`` tokens that may follow the next one's turn; None if there is nothing to go by.

        Never more than the output may still have beyond its next token, and none while the logits depend on the
        output itself.
        """
        room = self.num_remaining_tokens - 1
        if room < 1 or self.is_adjusted:
            return None
        if self._ngrams is None:
            self._ngrams = NgramIndex(self.token_ids)
        return self._ngrams.draft(min(num_tokens, room))

    def append(self, token_id: int) -> str:
        """Take ``token_id`` as the next output token; return the text that became certain. May set ``finish``."""
        self.token_ids.append(token_id)
        can_stop = self.num_output_tokens >= self.sampling.min_tokens
        if token_id in self.stop_ids and can_stop:
            self.finish = FinishReason.STOP
            return self.detokenizer.flush()
        text = self.detokenizer.append(token_id, can_stop=can_stop)
        if self.detokenizer.stopped:
            self.finish = FinishReason.STOP
        elif self.num_output_tokens >= self.max_output_tokens:
            self.finish = FinishReason.LENGTH
            text += self.detokenizer.flush()
            if self.detokenizer.stopped:
                self.finish = FinishReason.STOP
        return text


def seed_of(sequence_id: str) -> int:
    """Return the seed of a sequence that brings none: drawn from its id, so that a retry draws the same."""
    return int.from_bytes(hashlib.blake2b(sequence_id.encode(), digest_size=8).digest(), "little") >> 1
