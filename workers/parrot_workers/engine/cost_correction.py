"""What an engine's work really costs, learned from its own steps: the announced cost model, corrected."""

from __future__ import annotations

import dataclasses

from parrot_mq.messages import CostModel

RATE = 0.1
"""Part of a step's error that a factor takes over at least: some 20 steps of memory. The first steps count for more."""
MAX_ERROR = 0.5
"""Error of one step, as a part of its prediction, that counts: a step that took a hundred times as long moves the
factors by 5 %, one speed that lasts is followed all the same."""
SMALL = 0.8
"""Part of a prefill that reading the weights may hide, from which on a step says more of the overlap than of speed."""
MAX_FACTOR = 64.0
"""How far the announced model may be wrong, either way."""


class CostCorrection:
    """Scales an announced cost model by two factors, one for prefill and one for decode, so that it fits the steps.

    Each observed step moves the factors towards explaining it, by a normalised least mean squares step on their
    logarithms (Nagumo and Noda 1967; the shares that prefill and decode have in the prediction are the input vector):
    a step that only decodes teaches only the factor of decode, a mixed one both, as much as each has part in it. A
    factor's gain is that of a mean at first, with what was announced as one observation, and later ``RATE``. Factors
    stay positive and within ``MAX_FACTOR``. Two factors are all that the steps of a live engine determine reliably:
    while its batch hardly changes, the terms of a decode step cannot be told from one another.

    A third number is learned, the overlap of prefill and decode: from steps that might hide ``SMALL`` of their prefill,
    such as pieces of prompts beside running sequences. Of these only what no overlap explains teaches the factors: a
    wrong overlap would else be taken for another speed of prefill. Without an announced overlap none is learned.
    """

    def __init__(self, announced: CostModel) -> None:
        self._announced = announced
        self._prefill = _Factor()
        self._decode = _Factor()
        self._overlap = _Overlap(announced.overlap)

    def observe(self, prefill_ms: float, decode_ms: float, took_ms: float, *, num_prefill_tokens: int) -> None:
        """Learn from a step that took ``took_ms``, of which the announced model predicts the other two alone.

        Ignored are steps that compute so few tokens of prompts that the weights are read for longer, unless an overlap
        says what they cost beside a decode step: what they last says nothing about a token of a prompt.
        """
        prefill_ms *= self._prefill.value
        decode_ms *= self._decode.value
        base_ms = self._announced.decode_base_ms * self._decode.value
        overlaps = decode_ms > 0 and self._announced.overlap > 0
        if 0 < prefill_ms < base_ms and not overlaps:
            return
        linear_ms = self._announced.prefill_per_token_ms * num_prefill_tokens * self._prefill.value
        hideable_ms = min(base_ms, linear_ms) if overlaps else 0.0
        predicted_ms = prefill_ms + decode_ms - self._overlap.value * hideable_ms
        if predicted_ms <= 0:
            return
        error = min(MAX_ERROR, max(-MAX_ERROR, took_ms / predicted_ms - 1))
        prefill_share, decode_share = prefill_ms / predicted_ms, decode_ms / predicted_ms
        if hideable_ms > SMALL * prefill_ms and self._overlap.learn(error * predicted_ms, hideable_ms, predicted_ms):
            return
        norm = prefill_share**2 + decode_share**2
        self._prefill.learn(error / norm, prefill_share)
        self._decode.learn(error / norm, decode_share)

    @property
    def corrected(self) -> CostModel:
        """The model that fits the newest steps."""
        announced, prefill, decode = self._announced, self._prefill.value, self._decode.value
        return dataclasses.replace(
            announced,
            prefill_per_token_ms=announced.prefill_per_token_ms * prefill,
            prefill_per_pair_ms=announced.prefill_per_pair_ms * prefill,
            decode_base_ms=announced.decode_base_ms * decode,
            decode_per_seq_ms=announced.decode_per_seq_ms * decode,
            decode_per_context_token_ms=announced.decode_per_context_token_ms * decode,
            overlap=self._overlap.value,
        )


class _Overlap:
    """A part between 0 and 1; ``num_seen`` counts as that of a factor does."""

    __slots__ = ("num_seen", "value")

    def __init__(self, value: float) -> None:
        self.value = value
        self.num_seen = 1.0

    def learn(self, error_ms: float, hideable_ms: float, predicted_ms: float) -> bool:
        """Move so that the error of a step, of which ``hideable_ms`` may be hidden, becomes less.

        False if it stands at its end already and the error asks for more.
        """
        self.num_seen += hideable_ms / predicted_ms
        error = min(MAX_ERROR, max(-MAX_ERROR, error_ms / hideable_ms))
        before, self.value = self.value, min(1.0, max(0.0, self.value - error * max(RATE, 1 / self.num_seen)))
        return self.value != before or not error_ms


class _Factor:
    """``num_seen`` counts observations by the share that the factor had in each, and the announced value as one."""

    __slots__ = ("num_seen", "value")

    def __init__(self) -> None:
        self.value = 1.0
        self.num_seen = 1.0

    def learn(self, error: float, share: float) -> None:
        """Move so that ``error``, a part of the prediction, becomes less; ``share`` of that was this factor's."""
        self.num_seen += share
        gain = max(RATE, 1 / self.num_seen)
        self.value = min(MAX_FACTOR, max(1 / MAX_FACTOR, self.value * (1 + gain * error * share)))
