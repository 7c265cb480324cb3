"""One step of the model: a flat batch in, one row of logits for each sequence that samples out."""

from __future__ import annotations

import torch
from torch import Tensor

from parrot_kernels import RaggedBatch
from parrot_mq.errors import ConfigError
from parrot_workers.engine.attention import REMEDY, PagedCache, PagedStep, attention_backend
from parrot_workers.engine.batch_scheduler import Chunk
from parrot_workers.engine.model_loader import PROBE_LEN, LoadedModel


class ModelRunner:
    """Runs chunks of sequences over the paged cache."""

    def __init__(self, model: LoadedModel, cache: PagedCache) -> None:
        self.model = model
        self.cache = cache

    def run(self, chunks: list[Chunk]) -> Tensor | None:
        """Compute ``chunks``; return the logits [num_rows, vocab_size] of the rows they want, None if none."""
        tokens: list[int] = []
        rows: list[int] = []
        lengths: list[int] = []
        for chunk in chunks:
            token_ids = chunk.token_ids
            tokens += token_ids
            lengths.append(len(token_ids))
            rows += range(len(tokens) - chunk.num_rows, len(tokens))
        logits = self.forward(
            tokens,
            [chunk.start for chunk in chunks],
            lengths,
            [chunk.block_table for chunk in chunks],
            rows or [len(tokens) - 1],
        )
        return logits if rows else None

    @torch.inference_mode()
    def forward(
        self, tokens: list[int], starts: list[int], lengths: list[int], tables: list[list[int]], rows: list[int]
    ) -> Tensor:
        """Run a flat batch: sequence i's tokens from position ``starts[i]`` on, ``lengths[i]`` of them.

        Returns the logits of the flat ``rows``.
        """
        device = self.model.device
        contexts = [start + length for start, length in zip(starts, lengths, strict=True)]
        batch = RaggedBatch(lengths, contexts, tables, self.cache.block_size, device)
        positions = [p for start, context in zip(starts, contexts, strict=True) for p in range(start, context)]
        with attention_backend(PagedStep(self.cache, batch)):
            return self.model.forward(
                torch.tensor(tokens, device=device),
                torch.tensor(positions, device=device),
                torch.tensor(rows, device=device),
            )

    def verify(self) -> None:
        """Check that the paged, chunked, mixed computation agrees with the model's own. Raises ConfigError.

        Catches a model that counts positions by itself, mixes tokens outside attention, or changes the scores unseen.
        Overwrites the first blocks of the cache, so it is for a cache that nobody uses yet.
        """
        ids: list[int] = self.model.probe_ids.tolist()
        size, cut, half = self.cache.block_size, PROBE_LEN - 5, PROBE_LEN // 2
        need = -(-PROBE_LEN // size)
        if self.cache.num_blocks < 2 * need:
            return
        ours, other = list(range(need)), list(range(need, 2 * need))
        self.forward(ids[::-1][:half] + ids[:cut], [0, 0], [half, cut], [other, ours], [half - 1])
        rest = PROBE_LEN - cut
        logits = self.forward([*ids[cut:], ids[0]], [cut, half], [rest, 1], [ours, other], [rest - 1])
        if not self.model.agrees(logits[0]):
            raise ConfigError(
                f"{self.model.name}: the torch engine's attention does not reproduce this model's: {REMEDY}"
            )
