"""What a simulated step computes and costs, and the sum over all steps."""

from __future__ import annotations

import dataclasses

from parrot_mq.messages import CostModel


@dataclasses.dataclass(frozen=True, slots=True)
class StepWork:
    """One step. ``prefills`` are (tokens, tokens before them) of each piece of a prompt, those computed ahead included.

    ``num_decoding`` sequences of ``context_tokens`` in all decode, of which ``shared_tokens`` are read for another one
    as well.
    """

    prefills: tuple[tuple[int, int], ...]
    num_decoding: int
    context_tokens: int
    shared_tokens: int
    num_ahead_tokens: int = 0

    @property
    def num_prefill_tokens(self) -> int:
        """Prompt tokens that are computed."""
        return sum(num_tokens for num_tokens, _ in self.prefills)

    def prefill_ms(self, cost: CostModel) -> float:
        """The part that prefills take."""
        return sum(cost.prefill_ms(num_tokens, start) for num_tokens, start in self.prefills)

    def decode_ms(self, cost: CostModel) -> float:
        """The part that decoding takes."""
        if not self.num_decoding:
            return 0.0
        return cost.decode_step_ms(self.num_decoding, self.context_tokens, self.shared_tokens)

    def total_ms(self, cost: CostModel) -> float:
        """What the step takes."""
        return cost.step_ms(self.prefills, self.num_decoding, self.context_tokens, self.shared_tokens)


@dataclasses.dataclass(slots=True)
class Totals:
    """Sums over the steps of an engine; times in milliseconds."""

    num_steps: int = 0
    busy_ms: float = 0.0
    prefill_ms: float = 0.0
    """Of prefills alone; where they are too short to be noticed beside the weights this is less than they took."""
    num_decode_steps: int = 0
    num_decoded: int = 0
    """Sequences, summed over the decode steps: the tokens that came out of them."""
    num_prefill_tokens: int = 0
    num_ahead_tokens: int = 0
    """Those of the prefill tokens that were computed ahead."""
    num_context_tokens: int = 0
    """Read by decode steps, each reading counted."""
    num_shared_tokens: int = 0
    """Those of them that were read for another sequence as well."""

    def add(self, work: StepWork, took_ms: float, cost: CostModel) -> None:
        """Count a step."""
        self.num_steps += 1
        self.busy_ms += took_ms
        if work.prefills:
            self.prefill_ms += work.prefill_ms(cost)
            self.num_prefill_tokens += work.num_prefill_tokens
            self.num_ahead_tokens += work.num_ahead_tokens
        if work.num_decoding:
            self.num_decode_steps += 1
            self.num_decoded += work.num_decoding
            self.num_context_tokens += work.context_tokens
            self.num_shared_tokens += work.shared_tokens
