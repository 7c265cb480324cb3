"""What an engine's work costs, in milliseconds: the model that it is scheduled by."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class CostModel:
    """Calibrated times of an engine, in milliseconds; zero means not measured.

    Prefill of ``n`` tokens behind ``c`` cached ones takes
    ``n * prefill_per_token_ms + n * (c + n / 2) * prefill_per_pair_ms`` (a pair is a query and a key that it reads). A
    step that decodes ``b`` sequences of ``t`` context tokens in all, of which ``s`` are read for another of them as
    well, takes ``decode_base_ms + b * decode_per_seq_ms + (t - s * shared_saving) * decode_per_context_token_ms``;
    ``shared_saving`` is 1 where attention reads a shared prefix once, 0 where it reads it for each sequence.
    """

    prefill_per_token_ms: float = 0.05
    decode_base_ms: float = 5.0
    decode_per_seq_ms: float = 0.5
    decode_per_context_token_ms: float = 0.0
    prefill_per_pair_ms: float = 0.0
    shared_saving: float = 0.0

    def prefill_ms(self, num_tokens: float, cached_tokens: float = 0) -> float:
        """Predicted time to prefill ``num_tokens`` uncached tokens behind ``cached_tokens``."""
        pairs = num_tokens * (cached_tokens + num_tokens / 2)
        return self.prefill_per_token_ms * num_tokens + self.prefill_per_pair_ms * pairs

    def decode_step_ms(self, num_seqs: float, context_tokens: float, shared_tokens: float = 0) -> float:
        """Predicted time of one decode step; ``shared_tokens`` of the context are read for another sequence as well."""
        read = context_tokens - self.shared_saving * shared_tokens
        return self.decode_base_ms + self.decode_per_seq_ms * num_seqs + self.decode_per_context_token_ms * read
