"""What the engine wants of a model, whoever computes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from parrot_kernels import CapturedStep
from parrot_workers.engine.paged_cache import LayerShape, PagedCache
from parrot_workers.engine.step_batch import StepBatch

REMEDY = "choose another model, or serve it by vLLM as an engine of kind openai"

PROBE_LEN = 12


class Model(Protocol):
    """A decoder-only language model over a paged cache."""

    @property
    def name(self) -> str:
        """The folder it came from."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights and activations, and of its cache unless another is asked for."""

    @property
    def vocab_size(self) -> int:
        """The length of a row of logits."""

    @property
    def max_len(self) -> int | None:
        """The longest sequence it knows positions for; None: unbounded."""

    @property
    def eos_ids(self) -> frozenset[int]:
        """Tokens that end an output."""

    @property
    def layers(self) -> dict[int, LayerShape]:
        """The attention layers, by index."""

    @property
    def weight_bytes(self) -> int:
        """What its weights take in memory."""

    @property
    def probe(self) -> Probe:
        """What its logits are checked against."""

    def forward(self, batch: StepBatch, cache: PagedCache) -> Tensor:
        """Store the keys and values of ``batch`` in ``cache``; return float32 logits [len(batch.rows), vocab_size]."""

    def capture(self, full: StepBatch, cache: PagedCache, buckets: Sequence[int] = ()) -> CapturedStep | None:
        """Capture ``forward`` over the buffers of ``full``, a batch of the most tokens; None if it must run eagerly.

        On a GPU it is captured for ``buckets``, see ``Backend.capture``.
        """


@dataclasses.dataclass(frozen=True, slots=True)
class Probe:
    """Tokens, and the logits [vocab_size] (float32) after them by transformers' own code for ``num_layers`` layers.

    ``model`` computes as many: it is the model itself, or its first layers where a second copy of the whole model would
    not fit.
    """

    ids: list[int]
    logits: Tensor
    model: Model

    def agrees(self, logits: Tensor, cache_dtype: torch.dtype) -> bool:
        """Whether ``logits`` [vocab_size] after ``ids`` are transformers', up to the rounding of the model's dtype and
        that of the cache.
        """
        expected, actual = self.logits.cpu(), logits.float().cpu()
        if expected.shape != actual.shape:
            return False
        if self.model.dtype == cache_dtype == torch.float32:
            return bool((expected - actual).abs().max() <= 1e-3 * expected.abs().max() + 1e-5)
        expected, actual = expected - expected.mean(), actual - actual.mean()
        return bool(torch.nn.functional.cosine_similarity(expected, actual, dim=0) > 0.97)


def probe_ids(vocab_size: int) -> list[int]:
    """Return the tokens of a probe."""
    return [i * 7 % min(vocab_size, 97) for i in range(PROBE_LEN)]
