"""Where the end of a token list has occurred before: the drafts of speculative decoding without a second model."""

from __future__ import annotations

import dataclasses

MAX_MATCH = 8
"""A longer common end tells no more."""
MAX_CANDIDATES = 8
"""Earlier occurrences that are compared, the latest first."""


@dataclasses.dataclass(frozen=True, slots=True)
class Draft:
    """Tokens that may come next; the last ``match_len`` known tokens stood before them once already."""

    token_ids: list[int]
    match_len: int


class NgramIndex:
    """Looks up earlier occurrences of the last tokens of ``token_ids``, a list that its owner only appends to.

    Summaries, edits and answers with quotations copy from their prompts: what followed the last tokens there is likely
    to follow here (prompt lookup decoding, A. Saxena, 2023). Indexed are pairs of tokens; an append and a lookup cost
    constant time.
    """

    def __init__(self, token_ids: list[int]) -> None:
        self._ids = token_ids
        self._ends: dict[tuple[int, int], list[int]] = {}
        """For each pair, the positions right behind its occurrences, in order."""
        self._num_indexed = 1

    def draft(self, num_tokens: int) -> Draft | None:
        """Return at most ``num_tokens`` tokens that followed the longest match; None if there is no match.

        A match that overlaps the end goes on with what it has drafted itself, as a repetition does.
        """
        ids = self._ids
        self._extend()
        if len(ids) < 3 or num_tokens < 1:
            return None
        best, best_len = -1, 0
        for position in self._ends.get((ids[-2], ids[-1]), ())[: -MAX_CANDIDATES - 1 : -1]:
            length = self._match_len(position)
            if length > best_len:
                best, best_len = position, length
        if best < 0:
            return None
        drafted = ids[best : best + num_tokens]
        while len(drafted) < num_tokens:
            drafted.append(drafted[len(drafted) - (len(ids) - best)])
        return Draft(drafted, best_len)

    def _extend(self) -> None:
        ids, ends = self._ids, self._ends
        # Not the pair at the very end: nothing follows it yet.
        for position in range(self._num_indexed + 1, len(ids)):
            ends.setdefault((ids[position - 2], ids[position - 1]), []).append(position)
        self._num_indexed = max(self._num_indexed, len(ids) - 1)

    def _match_len(self, position: int) -> int:
        ids, end = self._ids, len(self._ids)
        length = 2
        while length < MAX_MATCH and length < position and ids[position - length - 1] == ids[end - length - 1]:
            length += 1
        return length
