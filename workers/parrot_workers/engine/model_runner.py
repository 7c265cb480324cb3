"""One step of the model: spans of sequences in, the logits that are wanted of them out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from parrot_kernels import BLOCK_SIZE, CapturedStep
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
        self._captured = self._capture(model)

    def run(self, spans: Sequence[Span]) -> Tensor:
        """Compute ``spans``; return float32 logits [sum of their num_rows, vocab_size], in their order.

        They may lie in a buffer that the next run overwrites.
        """
        return self._run(self.model, self._captured, spans)

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers of steps."""
        return self._buffers.nbytes + (self._captured.nbytes if self._captured is not None else 0)

    @property
    def seconds(self) -> dict[str, float]:
        """Time by kind of operation, summed over all steps; empty where steps are not captured."""
        return self._captured.seconds if self._captured is not None else {}

    @torch.inference_mode()
    def _capture(self, model: Model) -> CapturedStep | None:
        return model.capture(self._buffers.full, self.cache)

    @torch.inference_mode()
    def _run(self, model: Model, captured: CapturedStep | None, spans: Sequence[Span]) -> Tensor:
        batch = self._buffers.fill(spans)
        if captured is None:
            logits = model.forward(batch, self.cache)
        else:
            logits = captured.run(len(batch.ids), len(batch.rows), batch.plan)
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
        captured = self._capture(probe.model)
        self._run(probe.model, captured, [Span(ids[::-1][:half], 0, 1, other), Span(ids[:cut], 0, 0, ours)])
        logits = self._run(probe.model, captured, [Span(ids[cut:], cut, 1, ours), Span(ids[:1], half, 1, other)])
        if not probe.agrees(logits[0]):
            raise ConfigError(f"{self.model.name}: the torch engine does not reproduce this model's logits: {REMEDY}")
