"""One step of the model: spans of sequences in, the logits that are wanted of them out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from parrot_kernels import BLOCK_SIZE, CapturedStep
from parrot_mq.errors import ConfigError
from parrot_workers.engine.models.model import PROBE_LEN, REMEDY, Model
from parrot_workers.engine.paged_cache import PagedCache
from parrot_workers.engine.step_batch import Span, StepBuffers

PROBE_ROWS = 2
"""Rows of logits in a step of ``ModelRunner.verify``."""


class Ranks(Protocol):
    """The other ranks of a model that is split over several."""

    def announce(self, spans: Sequence[Span], *, is_probe: bool) -> None:
        """Have them compute ``spans`` too, by the model or by its probe's. Raises RankLost."""

    def close(self) -> None:
        """End them. Idempotent."""


class ModelRunner:
    """Runs up to ``max_num_tokens`` tokens a step over the paged cache, with the logits of up to ``max_num_rows``.

    For that and for ``buckets`` see ``StepBuffers``: of a large vocabulary the logits are most of a step's memory.
    ``ranks`` are told of each step, and compute it with us.
    """

    def __init__(
        self,
        model: Model,
        cache: PagedCache,
        *,
        max_num_tokens: int,
        max_num_rows: int | None = None,
        buckets: Iterable[int] = (),
        ranks: Ranks | None = None,
    ) -> None:
        self.model = model
        self.cache = cache
        self._ranks = ranks
        self._buffers = StepBuffers(
            max(max_num_tokens, 2 * PROBE_LEN),
            model.device,
            max_num_rows=max(max_num_rows, PROBE_ROWS) if max_num_rows is not None else None,
            buckets=buckets,
        )
        self._captured = self._capture(model, self._buffers.buckets)

    def run(self, spans: Sequence[Span], sampled: Tensor | None = None) -> Tensor:
        """Compute ``spans``; return float32 logits [sum of their num_rows, vocab_size], in their order.

        They may lie in a buffer that the next run overwrites. ``sampled`` int64 [len(spans)], on the device, stand in
        place of the ids of spans of one token each, which the host need not know; not with ``ranks``, who are told ids.
        """
        assert sampled is None or self._ranks is None, "the other ranks are told ids that nobody knows"
        return self._run(self.model, self._captured, spans, sampled)

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers of steps."""
        return self._buffers.nbytes + (self._captured.nbytes if self._captured is not None else 0)

    @property
    def seconds(self) -> dict[str, float]:
        """Time by kind of operation, summed over all steps; empty where steps are not captured."""
        return self._captured.seconds if self._captured is not None else {}

    @torch.inference_mode()
    def _capture(self, model: Model, buckets: Sequence[int]) -> CapturedStep | None:
        return model.capture(self._buffers.full, self.cache, buckets)

    def run_probe(self, spans: Sequence[Span]) -> Tensor:
        """Compute ``spans`` by the probe's model, uncaptured."""
        return self._run(self.model.probe.model, None, spans, is_probe=True)

    def close(self) -> None:
        """End the other ranks, if there are any. Idempotent."""
        if self._ranks is not None:
            self._ranks.close()

    def _run(
        self,
        model: Model,
        captured: CapturedStep | None,
        spans: Sequence[Span],
        sampled: Tensor | None = None,
        *,
        is_probe: bool = False,
    ) -> Tensor:
        if self._ranks is None:
            return self._compute(model, captured, spans, sampled)
        try:
            self._ranks.announce(spans, is_probe=is_probe)
            return self._compute(model, captured, spans, sampled)
        except BaseException:
            # The others wait in the middle of a step that will not go on: they must never sum it with another.
            self._ranks.close()
            raise

    @torch.inference_mode()
    def _compute(
        self, model: Model, captured: CapturedStep | None, spans: Sequence[Span], sampled: Tensor | None
    ) -> Tensor:
        batch = self._buffers.fill(spans, sampled)
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
        # Its steps are no larger.
        buckets = [bucket for bucket in self._buffers.buckets if bucket <= 2 * PROBE_LEN]
        captured = self._capture(probe.model, buckets)
        first = [Span(ids[::-1][:half], 0, 1, other), Span(ids[:cut], 0, 0, ours)]
        second = [Span(ids[cut:], cut, 1, ours), Span(ids[:1], half, 1, other)]
        self._run(probe.model, captured, first, is_probe=True)
        logits = self._run(probe.model, captured, second, is_probe=True)
        if not probe.agrees(logits[0], self.cache.dtype):
            raise ConfigError(f"{self.model.name}: the torch engine does not reproduce this model's logits: {REMEDY}")
