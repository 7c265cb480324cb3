"""What a simulated model says: decided from the prompt when a sequence arrives, and the same wherever it runs."""

from __future__ import annotations

import dataclasses
import hashlib
import random
import re
import zlib

from parrot_mq.messages import SamplingParams
from parrot_workers.engine.port import FinishReason

WORDS = re.findall(
    r"\w+",
    "the and for are was can not has all one two new now who how why our its key row job map bit set run log end cut "
    "way day ask see say use try put get let may any few old big top low far",
)
"""Each is four bytes with the space before it, which is what a token is taken for: an output of n tokens that another
prompt reads counts as n tokens there."""

ECHO = "echo:"
"""A prompt that holds this is answered with the text behind its last occurrence, word by word."""

_PIECE = re.compile(r"\s*\S+|\s+")
VOCABULARY_SIZE = 50_000


def token_id(piece: str) -> int:
    """Return the id of a piece of text: a hash, since no simulated consumer decodes it."""
    return zlib.crc32(piece.encode(errors="surrogatepass")) % VOCABULARY_SIZE


@dataclasses.dataclass(frozen=True, slots=True)
class Script:
    """The whole output of a sequence, known from the start.

    After token ``i`` the text ``text[:certain[i]]`` can no longer turn out to belong to a stop string.
    """

    token_ids: tuple[int, ...]
    certain: tuple[int, ...]
    text: str
    finish: FinishReason
    cut: bool = False
    """A stop string cut it, so that no ids decode to exactly ``text``."""


def write_script(prompt: str, sampling: SamplingParams, mean_output_tokens: int, room: int) -> Script:
    """Return what is said to ``prompt``.

    It depends on the prompt, the seed and the sampling parameters alone. Its length is ``max_tokens``; with
    ``mean_output_tokens`` > 0 it is drawn around that (a fixed draw for each prompt) unless ``ignore_eos``. At most
    ``room`` tokens fit. Stop strings cut it, but not before ``min_tokens``.
    """
    echoed = prompt.rpartition(ECHO)[2] if ECHO in prompt else None
    limit = min(sampling.max_tokens, room)
    if echoed is not None:
        pieces = _PIECE.findall(echoed)
        ended = len(pieces) <= limit
        pieces = pieces[:limit]
    else:
        key = f"{sampling.seed or 0}\x00{prompt}".encode(errors="surrogatepass")
        draw = random.Random(int.from_bytes(hashlib.sha256(key).digest()[:8]))
        length = limit
        if mean_output_tokens > 0 and not sampling.ignore_eos:
            length = max(1, sampling.min_tokens, round(draw.expovariate(1 / mean_output_tokens)))
        ended = length < limit
        pieces = [(" " if index else "") + draw.choice(WORDS) for index in range(min(length, limit))]
    return _cut(pieces, sampling, FinishReason.STOP if ended else FinishReason.LENGTH)


def _cut(pieces: list[str], sampling: SamplingParams, finish: FinishReason) -> Script:
    text, certain = "", []
    for index, piece in enumerate(pieces):
        before, text = len(text), text + piece
        stop = _first_stop(text, before, sampling.stop) if index + 1 > sampling.min_tokens else -1
        if stop >= 0:
            certain.append(stop)
            ids = tuple(map(token_id, pieces[: index + 1]))
            return Script(ids, tuple(min(length, stop) for length in certain), text[:stop], FinishReason.STOP, cut=True)
        certain.append(len(text) - _held_back(text, sampling.stop))
    if certain:
        certain[-1] = len(text)
    return Script(tuple(map(token_id, pieces)), tuple(certain), text, finish)


def _first_stop(text: str, before: int, stops: tuple[str, ...]) -> int:
    """Return where the first stop string that ends in ``text[before:]`` begins, -1 for none."""
    found = (text.find(stop, max(0, before - len(stop) + 1)) for stop in stops)
    return min((position for position in found if position >= 0), default=-1)


def _held_back(text: str, stops: tuple[str, ...]) -> int:
    """Return how many characters at the end of ``text`` may be the beginning of a stop string."""
    longest = 0
    for stop in stops:
        for size in range(min(len(stop) - 1, len(text)), longest, -1):
            if text.endswith(stop[:size]):
                longest = size
                break
    return longest
