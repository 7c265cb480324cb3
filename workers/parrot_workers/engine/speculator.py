"""How many drafted tokens are worth a place in the next step."""

from __future__ import annotations

import heapq
from collections.abc import Sequence as Seq

from parrot_mq.messages import CostModel
from parrot_workers.engine.ngram_index import MAX_MATCH, Draft
from parrot_workers.engine.sequence import Sequence

MAX_DRAFT = 8
"""Drafted tokens of a sequence in one step."""
PRIOR_ACCEPTED, PRIOR_REJECTED = 1.0, 1.0
WINDOW = 64.0
"""Counts decay to this many observations, so that the estimates follow the work."""
FORGOTTEN = 1 / 256
"""Of what was observed, at each draft that is not tried for it: else what was wrong once were never tried again."""


class AcceptanceRate:
    """Probability that a drafted token is right if those before it were, by the length of the match it came from."""

    def __init__(self) -> None:
        self._accepted = [PRIOR_ACCEPTED] * (MAX_MATCH + 1)
        self._tried = [PRIOR_ACCEPTED + PRIOR_REJECTED] * (MAX_MATCH + 1)

    def __call__(self, match_len: int) -> float:
        """Return the estimate for a match of ``match_len`` tokens."""
        return self._accepted[match_len] / self._tried[match_len]

    def observe(self, match_len: int, num_accepted: int, *, rejected: bool) -> None:
        """Count a draft of which ``num_accepted`` tokens were right, and the next one wrong if ``rejected``."""
        self._accepted[match_len] += num_accepted
        self._tried[match_len] += num_accepted + rejected
        if self._tried[match_len] > WINDOW:
            shrink = WINDOW / self._tried[match_len]
            self._accepted[match_len] *= shrink
            self._tried[match_len] *= shrink

    def forget(self, match_len: int) -> None:
        """A draft was there and is not tried: go a step back towards the prior."""
        self._accepted[match_len] += FORGOTTEN * (PRIOR_ACCEPTED - self._accepted[match_len])
        self._tried[match_len] += FORGOTTEN * (PRIOR_ACCEPTED + PRIOR_REJECTED - self._tried[match_len])


class Speculator:
    """Chooses drafts for the decoding sequences of a step.

    A step of r rows takes ``decode_base_ms + r * decode_per_seq_ms`` (CostModel), so that it yields t / (base + r *
    row) tokens a millisecond. A drafted token at depth j is right with probability p ** j and is taken as long as it
    raises that ratio, the likeliest first. With many sequences the base is shared by all and a row is what costs: only
    near-certain drafts remain, then none.
    """

    def __init__(self, cost: CostModel) -> None:
        self._base_ms = cost.decode_base_ms
        self._row_ms = max(cost.decode_per_seq_ms, 1e-6)
        self.rate = AcceptanceRate()

    def choose(self, sequences: Seq[Sequence], max_tokens: int) -> dict[Sequence, Draft]:
        """Return the drafts of ``sequences`` worth verifying, at most ``max_tokens`` tokens in all.

        ``sequences`` are all that decode one token in this step.
        """
        floor = self._worth(len(sequences), len(sequences))
        if floor >= 1:
            return {}
        drafts = {i: draft for i, sequence in enumerate(sequences) if (draft := sequence.draft(MAX_DRAFT)) is not None}
        candidates = [(-rate, i) for i, draft in drafts.items() if (rate := self.rate(draft.match_len)) > floor]
        for draft in drafts.values():
            if self.rate(draft.match_len) <= floor:
                self.rate.forget(draft.match_len)
        heapq.heapify(candidates)
        lengths: dict[int, int] = {}
        tokens, rows = float(len(sequences)), len(sequences)
        while candidates and rows < len(sequences) + max_tokens:
            probability, index = candidates[0]
            if -probability <= self._worth(tokens, rows):
                break
            tokens -= probability
            rows += 1
            lengths[index] = lengths.get(index, 0) + 1
            if lengths[index] < len(drafts[index].token_ids):
                heapq.heapreplace(candidates, (probability * self.rate(drafts[index].match_len), index))
            else:
                heapq.heappop(candidates)
        return {
            sequences[index]: Draft(drafts[index].token_ids[:n], drafts[index].match_len)
            for index, n in lengths.items()
        }

    def observe(self, draft: Draft, token_ids: Seq[int]) -> None:
        """Learn from the tokens that came out where ``draft`` was proposed; the last may differ from it."""
        right = [token_id == drafted for token_id, drafted in zip(token_ids, draft.token_ids, strict=False)]
        self.rate.observe(draft.match_len, sum(right), rejected=not all(right))

    def _worth(self, tokens: float, rows: int) -> float:
        """What the probability of one more row must exceed: tokens a step yields in the time that a row takes."""
        return self._row_ms * tokens / (self._base_ms + rows * self._row_ms)
