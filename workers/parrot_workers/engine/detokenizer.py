"""Text of an output, token by token: never half a character, never a piece of a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"
MAX_HELD = 16
"""More trailing U+FFFD than this are no unfinished character but bytes that are no text."""

Decode = Callable[[Sequence[int]], str]


class Detokenizer:
    """Turns the output ids of one sequence into text that can be published piece by piece.

    ``decode`` maps ids to text, special tokens left out. Decoders look at what stands before (a sentencepiece one drops
    the space before the first word only), so that a token is decoded behind the ones before it: ids from
    ``_window_start`` on, of which ``_window_text`` was taken already. Text that may be the start of a character
    (trailing U+FFFD) or of a stop string is held back.
    """

    def __init__(self, decode: Decode, stop: tuple[str, ...] = ()) -> None:
        self._decode = decode
        self._stop = stop
        self.ids: list[int] = []
        """Ids whose text belongs to the output; a stop token is never among them."""
        self.text = ""
        """The text so far, held back or not; final, and cut before the stop string, once ``stopped``."""
        self.stopped = False
        self._num_published = 0
        self._window_start = 0
        self._clean_end = 0
        self._window_text = 0
        self._min_end = 0

    def append(self, token_id: int, *, can_stop: bool = True) -> str:
        """Take the next id; return the text that became certain. ``can_stop`` False: no stop string ends here yet."""
        self.ids.append(token_id)
        self._decode_window(hold=True)
        if not can_stop:
            self._min_end = len(self.text)
        elif self._stop:
            self._find_stop()
        return self._publish(len(self.text) - self._num_held())

    def flush(self) -> str:
        """The output has ended: return what was held back."""
        if not self.stopped:
            self._decode_window(hold=False)
            self._find_stop()
        return self._publish(len(self.text))

    def text_ids(self) -> tuple[int, ...]:
        """Return the ids that decode to exactly ``text``, or () if there are none such among the output's."""
        for end in range(len(self.ids), 0, -1):
            decoded = self._decode(self.ids[:end])
            if decoded == self.text:
                return tuple(self.ids[:end])
            if len(decoded) < len(self.text):
                break
        return ()

    def _decode_window(self, *, hold: bool) -> None:
        decoded = self._decode(self.ids[self._window_start :])
        end = len(decoded)
        if hold:
            # All of them, not the last three: with byte-fallback tokenizers one unfinished character makes U+FFFD of
            # every byte token of its run, those of finished characters too.
            stable = len(decoded.rstrip(REPLACEMENT))
            end = stable if end - stable <= MAX_HELD else end - MAX_HELD
        if end > self._window_text:
            self.text += decoded[self._window_text : end]
            self._window_text = end
        if end == len(decoded) and (tail := self._decode(self.ids[self._clean_end :])):
            # All of it is taken: start the next window at what was the clean end before this one. (Not if that has no
            # text of its own: the next token would look like the first.)
            self._window_start, self._clean_end = self._clean_end, len(self.ids)
            self._window_text = len(tail)

    def _find_stop(self) -> None:
        """Cut the text before the stop string that is complete first, counting from ``_min_end``."""
        best: tuple[int, int] | None = None
        for stop in self._stop:
            start = self.text.find(stop, max(0, self._searched_from(stop)))
            while start >= 0 and start + len(stop) <= self._min_end:
                start = self.text.find(stop, start + 1)
            if start >= 0 and (best is None or (start + len(stop), start) < best):
                best = (start + len(stop), start)
        if best is not None:
            self.text = self.text[: best[1]]
            self.stopped = True

    def _searched_from(self, stop: str) -> int:
        """Where ``stop`` could start at the earliest: what is published cannot be taken back."""
        return max(self._num_published, self._min_end - len(stop) + 1)

    def _num_held(self) -> int:
        """Length of the longest end of the text that is the beginning of a stop string."""
        if self.stopped or not self._stop:
            return 0
        longest = max(len(stop) for stop in self._stop) - 1
        for length in range(min(longest, len(self.text) - self._num_published), 0, -1):
            tail = self.text[-length:]
            if any(len(stop) > length and stop.startswith(tail) for stop in self._stop):
                return length
        return 0

    def _publish(self, end: int) -> str:
        piece = self.text[self._num_published : end]
        self._num_published += len(piece)
        return piece
