"""What a simulated prompt is made of: four bytes for each token, in blocks that are found by what is in them."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Sequence

from parrot_workers.engine.port import PromptSegment

BYTES_PER_TOKEN = 4


def content_of(segments: Iterable[PromptSegment]) -> bytes:
    """Return a prompt's tokens: the ids of a segment where they are known, else four bytes of its text for each.

    Every segment is taken apart on its own, so that equal beginnings stay equal whatever follows them.
    """
    return b"".join(
        ids_content(segment.token_ids) if segment.token_ids is not None else _text_content(segment.text)
        for segment in segments
    )


def ids_content(token_ids: Sequence[int]) -> bytes:
    """Return generated tokens as they are found again in a prompt."""
    return array("I", [token_id & 0xFFFFFFFF for token_id in token_ids]).tobytes()


def count_tokens(text: str) -> int:
    """Return how many tokens ``text`` is taken for: one for every four bytes, rounded up."""
    return len(_text_content(text)) // BYTES_PER_TOKEN


def extend_digests(digests: list[bytes], content: bytes, salt: str, block_size: int) -> None:
    """Append to ``digests`` what it lacks of the full blocks of ``content``: chained hashes, begun at the salt."""
    size = block_size * BYTES_PER_TOKEN
    digest = digests[-1] if digests else hashlib.blake2b(salt.encode(), digest_size=16, person=b"salt").digest()
    for start in range(len(digests) * size, len(content) - size + 1, size):
        digest = hashlib.blake2b(content[start : start + size], key=digest, digest_size=16).digest()
        digests.append(digest)


def _text_content(text: str) -> bytes:
    data = text.encode(errors="surrogatepass")
    return data + b"\x00" * (-len(data) % BYTES_PER_TOKEN)
