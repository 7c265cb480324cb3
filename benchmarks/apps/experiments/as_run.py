"""Shapes as the reference's artifact really ran them, where they differ from what is written about them.

They are points of their own: the seconds that it published are of these. Counted from the artifact (ParrotServe, branch
artifact): its articles, its results, and the tokens that its multi-agent runs print.
"""

from __future__ import annotations

from benchmarks.apps.bench import Bench

CHUNK_TOKENS = {1024: 474, 2048: 943}
"""Tokens that a chunk of so many really holds on average: its splitter counts one more for each word."""
CHAIN_CALLS = (75, 47, 53, 46, 62, 59, 104, 100, 49, 63)
"""Chunks of 474 tokens of its ten articles: by how much the seconds of its own chains grow with the output, scaled to
the mean of 65.8 that its splitter gives."""
CONCURRENT_CALLS = (
    *(28, 25, 24, 21, 29, 29, 35, 21, 27, 25, 26, 22, 23),
    *(27, 30, 28, 24, 27, 28, 24, 29, 25, 31, 21, 29),
)
"""Chunks of 943 tokens of the other 25 articles that its concurrent chains read: their bytes, at 1,246 bytes a chunk of
474 tokens as in the ten."""


def chunks_as_run(bench: Bench, document: int) -> list[str]:
    """Return the texts of a document's chunks of 474 tokens."""
    return _chunks(bench, "document", document, CHAIN_CALLS[document % len(CHAIN_CALLS)], CHUNK_TOKENS[1024])


def concurrent_chunks_as_run(bench: Bench, document: int) -> list[str]:
    """Return the texts of the chunks of one of the documents that are read at once."""
    calls = CONCURRENT_CALLS[document % len(CONCURRENT_CALLS)]
    return _chunks(bench, "concurrent document", document, calls, CHUNK_TOKENS[2048])


def _chunks(bench: Bench, kind: str, document: int, count: int, num_tokens: int) -> list[str]:
    return [bench.text(num_tokens, kind, document, number) for number in range(count)]
