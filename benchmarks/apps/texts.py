"""Texts whose number of tokens is exact, for a simulated engine and for a real tokenizer."""

from __future__ import annotations

import random
import string
from pathlib import Path
from typing import Protocol

from benchmarks.engine.workload import NUM_UNSPOKEN_IDS

BYTES_PER_SIMULATED_TOKEN = 4


class Texts(Protocol):
    """Makes texts. The same ``key`` gives the same text; other keys give texts that share no beginning."""

    def text(self, num_tokens: int, *key: object) -> str:
        """Return a text that is exactly ``num_tokens`` tokens, as a segment of its own."""


class SimulatedTexts:
    """For simulated engines, which take four bytes for a token: words of three letters behind a space."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def text(self, num_tokens: int, *key: object) -> str:
        letters = random.Random(f"{self._seed} {key}").choices(string.ascii_lowercase, k=3 * num_tokens)
        return "".join(" " + "".join(letters[start : start + 3]) for start in range(0, len(letters), 3))


class TokenizerTexts:
    """For the models of the engine benchmark, in whose tokenizer any words give the same ids again."""

    def __init__(self, folder: Path, seed: int) -> None:
        import tokenizers

        self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._num_ids = self._tokenizer.get_vocab_size()
        self._seed = seed

    def text(self, num_tokens: int, *key: object) -> str:
        """Raises ValueError if the tokenizer would read the text as another number of tokens."""
        first = min(NUM_UNSPOKEN_IDS, self._num_ids // 2)
        ids = random.Random(f"{self._seed} {key}").choices(range(first, self._num_ids), k=num_tokens)
        text: str = self._tokenizer.decode(ids)
        if len(self._tokenizer.encode(text, add_special_tokens=False).ids) != num_tokens:
            raise ValueError(f"{text[:40]!r}... is not {num_tokens} tokens of this tokenizer")
        return text
