"""What a sequence has said so far: every reader of it keeps a place of its own."""

from __future__ import annotations

import bisect

from parrot_workers.engine.port import SequenceOutput

MAX_UNFINISHED = 16
"""Characters that may be held back because they are not whole yet, whatever the stop strings."""


class Transcript:
    """Token ids and text of one output, in the steps in which they came.

    Ids are there at once; text that may belong to a stop string or to an unfinished character comes later than its
    ids. An attempt that goes on from published tokens begins with them, as if it had said them.
    """

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.pieces: list[str] = []
        """The text of each step; may be empty."""
        self._ends: list[int] = []
        """Token ids after each step."""
        self._lengths: list[int] = []
        """Characters after each step."""

    @property
    def text(self) -> str:
        """All text that is certain."""
        return "".join(self.pieces)

    def add(self, output: SequenceOutput) -> None:
        """Take what a step said."""
        self.extend(output.token_ids, output.text)

    def extend(self, token_ids: tuple[int, ...], text: str) -> None:
        """Take tokens, and the text that became certain with them."""
        self.token_ids.extend(token_ids)
        self.pieces.append(text)
        self._ends.append(len(self.token_ids))
        self._lengths.append(len(text) + (self._lengths[-1] if self._lengths else 0))

    def steps_to(self, num_tokens: int) -> int:
        """Return after how many steps ``num_tokens`` tokens are there, at most all that were made."""
        return min(len(self._ends), bisect.bisect_left(self._ends, num_tokens) + 1) if num_tokens else 0

    def begins_with(self, token_ids: tuple[int, ...]) -> bool:
        """Whether some step ended with exactly ``token_ids``: only there is it known which text goes with them."""
        steps = self.steps_to(len(token_ids))
        ends_there = not token_ids or (steps > 0 and self._ends[steps - 1] == len(token_ids))
        return ends_there and tuple(self.token_ids[: len(token_ids)]) == token_ids

    def cut(self, num_tokens: int) -> bool:
        """Forget all behind ``num_tokens`` tokens; False, and nothing is done, if no step ended there."""
        steps = self.steps_to(num_tokens)
        if num_tokens and (not steps or self._ends[steps - 1] != num_tokens):
            return False
        del self.token_ids[num_tokens:], self.pieces[steps:], self._ends[steps:], self._lengths[steps:]
        return True

    def num_certain(self, stop: tuple[str, ...]) -> int:
        """Return how many tokens can no longer turn out to belong to one of ``stop`` (or to an unfinished character).

        At each step fewer characters are held back than the longest stop string has, and some unfinished ones: once
        that many more are certain, all that the step said is.
        """
        if not stop:
            return len(self.token_ids)
        held = max(map(len, stop)) - 1 + MAX_UNFINISHED
        steps = bisect.bisect_right(self._lengths, (self._lengths[-1] if self._lengths else 0) - held)
        return self._ends[steps - 1] if steps else 0
