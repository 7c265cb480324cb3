"""What an engine's work costs, in milliseconds: the model that it is scheduled by."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import orjson


@dataclasses.dataclass(frozen=True, slots=True)
class RequestShape:
    """Mean lengths, in tokens, of the requests that an engine runs one after another.

    ``cached_tokens`` of the ``prompt_tokens`` are the same for all of them: found in the cache, and shared while they
    run.
    """

    prompt_tokens: float
    output_tokens: float
    cached_tokens: float = 0

    @property
    def context_tokens(self) -> float:
        """What such a request holds on average while it runs: its prompt, and half of its output."""
        return self.prompt_tokens + self.output_tokens / 2


@dataclasses.dataclass(frozen=True, slots=True)
class CostModel:
    """Calibrated times of an engine, in milliseconds; zero means not measured.

    Prefill of ``n`` tokens behind ``c`` cached ones takes
    ``n * prefill_per_token_ms + n * (c + n / 2) * prefill_per_pair_ms`` (a pair is a query and a key that it reads). A
    step that decodes ``b`` sequences of ``t`` context tokens in all, of which ``s`` are read for another of them as
    well, takes ``decode_base_ms + b * decode_per_seq_ms + (t - s * shared_saving) * decode_per_context_token_ms``;
    ``shared_saving`` is 1 where attention reads a shared prefix once, 0 where it reads it for each sequence.

    A step that does both takes the sum, less ``overlap * min(decode_base_ms, n * prefill_per_token_ms)`` for all ``n``
    tokens that it prefills. The form is a roofline of the linear layers (Williams et al. 2009): a decode step is bound
    by reading their weights (``decode_base_ms``), a prefill by computing (``n * prefill_per_token_ms``), and one step
    that does both reads the weights once, which takes max(reading, computing): the sum less the smaller of the two.
    Attention reads keys and values of its own for each sequence, so nothing of its time is shared. 1 is that roofline,
    0 an engine that does one after the other.

    Raises ValueError for a negative time, or a saving or overlap beyond 1.
    """

    prefill_per_token_ms: float = 0.05
    decode_base_ms: float = 5.0
    decode_per_seq_ms: float = 0.5
    decode_per_context_token_ms: float = 0.0
    prefill_per_pair_ms: float = 0.0
    shared_saving: float = 0.0
    overlap: float = 0.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not 0 <= value < math.inf or (field.name in ("shared_saving", "overlap") and value > 1):
                raise ValueError(f"{value} is no {field.name}")

    def prefill_ms(self, num_tokens: float, cached_tokens: float = 0) -> float:
        """Predicted time to prefill ``num_tokens`` uncached tokens behind ``cached_tokens``."""
        pairs = num_tokens * (cached_tokens + num_tokens / 2)
        return self.prefill_per_token_ms * num_tokens + self.prefill_per_pair_ms * pairs

    def decode_step_ms(self, num_seqs: float, context_tokens: float, shared_tokens: float = 0) -> float:
        """Predicted time of one decode step; ``shared_tokens`` of the context are read for another sequence as well."""
        read = context_tokens - self.shared_saving * shared_tokens
        return self.decode_base_ms + self.decode_per_seq_ms * num_seqs + self.decode_per_context_token_ms * read

    def hidden_ms(self, num_tokens: float) -> float:
        """Predicted time that a step saves in which sequences decode while so many tokens are prefilled."""
        return self.overlap * min(self.decode_base_ms, self.prefill_per_token_ms * num_tokens)

    def harm_ms(self, num_tokens: float, cached_tokens: float = 0) -> float:
        """Predicted delay of sequences that decode by a prefill that becomes part of one of their steps."""
        return self.prefill_ms(num_tokens, cached_tokens) - self.hidden_ms(num_tokens)

    def harm_in_pieces_ms(self, num_tokens: float, cached_tokens: float = 0) -> float:
        """Predicted delay, in all, of sequences that decode by a prefill in pieces, each hidden in one of their steps.

        So engines compute the prompts of throughput work beside urgent requests.
        """
        return self.prefill_ms(num_tokens, cached_tokens) - self.overlap * self.prefill_per_token_ms * num_tokens

    def step_ms(
        self,
        prefills: Iterable[tuple[float, float]],
        num_seqs: float = 0,
        context_tokens: float = 0,
        shared_tokens: float = 0,
    ) -> float:
        """Predicted time of a step that prefills pieces of (tokens, tokens before them), and decodes ``num_seqs``.

        A step that computes anything reads the weights: it takes ``decode_base_ms`` at least.
        """
        prefill_ms = num_tokens = 0.0
        for tokens, before in prefills:
            num_tokens += tokens
            prefill_ms += self.prefill_ms(tokens, before)
        if num_seqs:
            return (
                prefill_ms + self.decode_step_ms(num_seqs, context_tokens, shared_tokens) - self.hidden_ms(num_tokens)
            )
        return max(prefill_ms, self.decode_base_ms) if num_tokens else 0.0

    def interference_ms(self, shape: RequestShape) -> float:
        """Predicted prefill time that one running sequence of ``shape`` brings to each step, in steady state.

        A sequence of ``o`` output tokens ends every ``o`` steps; its place is taken by another, whose prefill becomes
        part of a step of the others: ``harm_ms(uncached prompt) / o`` a step.
        """
        uncached = shape.prompt_tokens - shape.cached_tokens
        return self.harm_ms(uncached, shape.cached_tokens) / max(1.0, shape.output_tokens)

    def tpot_ms(
        self, num_seqs: float, context_tokens: float, shared_tokens: float = 0, *, shape: RequestShape | None = None
    ) -> float:
        """Predicted time between two tokens of a sequence that runs in such a batch, in steady state.

        A decode step of the batch, and with ``shape`` the prefills of those like it that take the places of the
        sequences that end (``interference_ms`` of each). Where that is more than one prefill a step, what is hidden of
        them stays within one reading of the weights.
        """
        decode_ms = self.decode_step_ms(num_seqs, context_tokens, shared_tokens)
        if shape is None:
            return decode_ms
        unhidden_ms = max(0.0, num_seqs * self._hidden_of_one_ms(shape) - self.overlap * self.decode_base_ms)
        return decode_ms + num_seqs * self.interference_ms(shape) + unhidden_ms

    def steady_tpot_ms(self, num_seqs: float, shape: RequestShape) -> float:
        """Predicted time between two tokens while ``num_seqs`` sequences of ``shape`` run, in steady state."""
        shared = max(0.0, num_seqs - 1) * shape.cached_tokens
        return self.tpot_ms(num_seqs, num_seqs * shape.context_tokens, shared, shape=shape)

    def capacity_seqs(self, bound_ms: float, shape: RequestShape) -> float:
        """Return how many sequences of ``shape`` may run at once while ``steady_tpot_ms`` stays within ``bound_ms``.

        ``steady_tpot_ms`` is made of lines in the number ``b`` of sequences: with ``m`` mean tokens of context, ``c``
        of them cached, ``k`` the time per context token and ``v`` the saving, it is ``base + b * (seq + k * m +
        interference) - v * k * c * max(0, b - 1)``, and more from where the prefills of a step no longer hide behind
        one reading of the weights. Solved for ``b``. The first sequence saves nothing, so there is a corner at one,
        and another where hiding ends. Infinite if more sequences cost nothing; 0 if not even an empty step keeps the
        bound; may be below 1: then one alone does not.
        """
        room_ms = bound_ms - self.decode_base_ms
        if room_ms <= 0:
            return 0.0
        first_ms = self.steady_tpot_ms(1, shape) - self.decode_base_ms
        if first_ms > room_ms:
            return room_ms / first_ms
        hidden_ms = self._hidden_of_one_ms(shape)
        corner = self.overlap * self.decode_base_ms / hidden_ms if hidden_ms else math.inf
        start, end = 1.0, min(2.0, corner)
        if corner < math.inf and self.steady_tpot_ms(corner, shape) <= bound_ms:
            start, end = corner, corner + 1
        start_ms = self.steady_tpot_ms(start, shape)
        slope_ms = (self.steady_tpot_ms(end, shape) - start_ms) / (end - start)
        return start + (bound_ms - start_ms) / slope_ms if slope_ms > 0 else math.inf

    def capacity_tokens(self, bound_ms: float, shape: RequestShape) -> float:
        """Return the tokens of context that may run at once while ``steady_tpot_ms`` stays within ``bound_ms``.

        That is ``capacity_seqs`` times the mean context of ``shape``, shared tokens counted for each that reads them.
        What the memory holds is another bound, which this knows nothing of.
        """
        return self.capacity_seqs(bound_ms, shape) * shape.context_tokens

    def _hidden_of_one_ms(self, shape: RequestShape) -> float:
        """Return what the prefills that one running sequence brings to each step save there, while they are few."""
        return self.hidden_ms(shape.prompt_tokens - shape.cached_tokens) / max(1.0, shape.output_tokens)

    def to_json(self) -> str:
        """Return it as an object of milliseconds by name."""
        return orjson.dumps(dataclasses.asdict(self)).decode()

    @classmethod
    def from_json(cls, text: str) -> CostModel:
        """Parse what ``to_json`` of this version or another wrote: unknown names are ignored, missing ones default.

        Raises ValueError for text that is no such object, and as the class does.
        """
        values = orjson.loads(text)
        if not isinstance(values, dict):
            raise ValueError(f"{text!r} is no object of milliseconds by name")
        known = (field.name for field in dataclasses.fields(cls))
        try:
            return cls(**{name: float(values[name]) for name in known if name in values})
        except TypeError as error:
            raise ValueError(f"{text!r} is no object of milliseconds by name") from error
