"""The model's tokenizer: text to ids, segment by segment, and back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers
import transformers

SENTINELS = ("\n", "\ue000", ":", "a")
"""Characters tried as something to stand before a segment; the first whose ids stay apart from it is used."""
_PROBE = "hello"


class Tokenizer:
    """Encodes the pieces of a prompt so that their ids can be put one after the other.

    A sentencepiece tokenizer puts a space before any text it is given. A segment that does not begin the prompt is
    therefore encoded behind a sentinel, whose ids are then cut off. Values are encoded by a twin that knows no special
    tokens: ``<|im_end|>`` in a value is seven characters or so, never the end of a turn.
    """

    def __init__(self, tokenizer: Any, *, path: Path | None = None) -> None:
        self._tokenizer = tokenizer
        self._fast: tokenizers.Tokenizer | None = getattr(tokenizer, "backend_tokenizer", None)
        content = self._content(path)
        self.digest = hashlib.sha256(content).hexdigest()
        self.size = len(tokenizer)
        self.eos_id: int | None = tokenizer.eos_token_id
        self.special_ids = frozenset(tokenizer.all_special_ids) | frozenset(
            token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special
        )
        self._special_texts = tuple(
            sorted({tokenizer.convert_ids_to_tokens(i) for i in self.special_ids}, key=lambda text: -len(text))
        )
        self._plain = _without_special(content) if self._fast is not None else None
        self.prefix_ids = self._find_prefix()
        """What the tokenizer puts before a prompt: BOS, or nothing."""
        self._sentinels = self._find_sentinels()

    def encode(self, text: str, *, is_first: bool, is_value: bool) -> list[int]:
        """Return the ids of a segment, without BOS.

        ``is_first``: it begins the prompt. ``is_value``: special tokens in it stay text.
        """
        if not text:
            return []
        ids = self._behind_sentinel(text, is_first=is_first, is_value=is_value)
        if is_value and not self.special_ids.isdisjoint(ids):
            ids = self._encode_apart(text, is_first=is_first)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ``ids``, special tokens left out."""
        if self._fast is not None:
            return self._fast.decode(ids, skip_special_tokens=True)
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def is_plain(self, ids: Sequence[int]) -> bool:
        """Whether ``ids`` are all tokens with a text of their own, none special."""
        return self.special_ids.isdisjoint(ids) and all(token_id < self.size for token_id in ids)

    def _behind_sentinel(self, text: str, *, is_first: bool, is_value: bool) -> list[int]:
        if is_first:
            return self._encode(text, is_value=is_value)
        for sentinel, sentinel_ids in self._sentinels:
            ids = self._encode(sentinel + text, is_value=is_value)
            if ids[: len(sentinel_ids)] == sentinel_ids:
                return ids[len(sentinel_ids) :]
        return self._encode(text, is_value=is_value)

    def _encode_apart(self, text: str, *, is_first: bool) -> list[int]:
        """Encode a value whose characters spell a token of the vocabulary that is special: cut inside each spelling."""
        pieces = [text]
        for special in self._special_texts:
            if len(special) > 1:
                pieces = [part for piece in pieces for part in _cut_inside(piece, special)]
        ids: list[int] = []
        for index, piece in enumerate(pieces):
            ids += self._behind_sentinel(piece, is_first=is_first and index == 0, is_value=True)
        return [token_id for token_id in ids if token_id not in self.special_ids]

    def _encode(self, text: str, *, is_value: bool) -> list[int]:
        if self._fast is not None:
            encoder = self._plain if is_value and self._plain is not None else self._fast
            return list(encoder.encode(text, add_special_tokens=False).ids)
        return list(self._tokenizer(text, add_special_tokens=False, split_special_tokens=is_value)["input_ids"])

    def _find_prefix(self) -> list[int]:
        bare = self._encode(_PROBE, is_value=False)
        full = list(self._tokenizer(_PROBE)["input_ids"])
        for start in range(len(full) - len(bare) + 1):
            if full[start : start + len(bare)] == bare:
                return full[:start]
        return []

    def _find_sentinels(self) -> list[tuple[str, list[int]]]:
        """Return the sentinels with their ids; none if a segment reads the same wherever it stands."""
        if self._joins(""):
            return []
        encoded = [(sentinel, self._encode(sentinel, is_value=False)) for sentinel in SENTINELS]
        return [(sentinel, ids) for sentinel, ids in encoded if ids and self._joins(sentinel)]

    def _joins(self, sentinel: str) -> bool:
        """Whether a word encoded behind ``sentinel`` and cut off it decodes to itself after another word."""
        before = self._encode(sentinel, is_value=False) if sentinel else []
        ids = self._encode(sentinel + _PROBE, is_value=False)
        if ids[: len(before)] != before:
            return False
        word = self._encode(_PROBE, is_value=False)
        return self.decode(word + ids[len(before) :]) == _PROBE + _PROBE

    def _content(self, path: Path | None) -> bytes:
        file = path / "tokenizer.json" if path is not None else None
        if file is not None and file.is_file():
            return file.read_bytes()
        if self._fast is not None:
            return self._fast.to_str().encode()
        vocabulary: dict[str, int] = self._tokenizer.get_vocab()
        return json.dumps(sorted(vocabulary.items()), ensure_ascii=False).encode()


def load_tokenizer(model: str) -> Tokenizer:
    """Load the tokenizer of a model folder or id."""
    path = Path(model)
    return Tokenizer(transformers.AutoTokenizer.from_pretrained(model), path=path if path.is_dir() else None)


def _without_special(content: bytes) -> tokenizers.Tokenizer:
    """Return a twin that takes special tokens, and those that look like a tag (``<think>``), for plain text.

    Runs of spaces and the like, which some tokenizers add as ordinary tokens, stay. All ids stay as they are.
    """
    data = json.loads(content)
    for token in data.get("added_tokens", []):
        token["special"] |= token["content"].startswith("<") and token["content"].endswith(">")
    data["truncation"] = data["padding"] = None
    twin = tokenizers.Tokenizer.from_str(json.dumps(data))
    twin.encode_special_tokens = True
    return twin


def _cut_inside(text: str, special: str) -> list[str]:
    parts = text.split(special)
    pieces = []
    for index, part in enumerate(parts):
        head = special[1:] if index else ""
        tail = special[:1] if index < len(parts) - 1 else ""
        pieces.append(head + part + tail)
    return [piece for piece in pieces if piece]
