"""One step of the model: spans of sequences in, the logits that are wanted of them out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from parrot_kernels import BLOCK_SIZE
from parrot_mq.errors import ConfigError
from parrot_workers.engine.models.model import PROBE_LEN, REMEDY, Model
from parrot_workers.engine.paged_cache import PagedCache
from parrot_workers.engine.step_batch import Span, StepBuffers


class ModelRunner:
    """Runs up to ``max_num_tokens`` tokens a step over the paged cache; for ``buckets`` see ``StepBuffers``."""

    def __init__(self, model: Model, cache: PagedCache, *, max_num_tokens: int, buckets: Iterable[int] = ()) -> None:
        self.model = model
        self.cache = cache
        self._buffers = StepBuffers(max(max_num_tokens, 2 * PROBE_LEN), model.device, buckets=buckets)

    def run(self, spans: Sequence[Span]) -> Tensor:
        """Compute ``spans``; return float32 logits [sum of their num_rows, vocab_size], in their order."""
        return self._run(self.model, spans)

    @torch.inference_mode()
    def _run(self, model: Model, spans: Sequence[Span]) -> Tensor:
        logits = model.forward(self._buffers.fill(spans), self.cache)
        return logits[: sum(span.num_rows for span in spans)]

    def verify(self) -> None:
        """Check that the paged, chunked, mixed computation agrees with transformers' own. Raises ConfigError.

        Catches a model that counts positions by itself, mixes tokens outside attention, or changes the scores unseen.
        Overwrites the first blocks of the cache, so it is for a cache that nobody uses yet.
        """
        probe = self.model.probe
        ids, cut, half = probe.ids, PROBE_LEN - 5, PROBE_LEN // 2
        need = -(-PROBE_LEN // BLOCK_SIZE)
        if self.cache.num_blocks < 2 * need:
            return
        ours, other = list(range(need)), list(range(need, 2 * need))
        self._run(probe.model, [Span(ids[::-1][:half], 0, 1, other), Span(ids[:cut], 0, 0, ours)])
        logits = self._run(probe.model, [Span(ids[cut:], cut, 1, ours), Span(ids[:1], half, 1, other)])
        if not probe.agrees(logits[0]):
            raise ConfigError(f"{self.model.name}: the torch engine does not reproduce this model's logits: {REMEDY}")
