"""The seam to transformers' modelling code: its attention layers call our paged attention.

A model loaded with ``attn_implementation=NAME`` calls ``_forward`` in each attention layer; what that does is up to the
*backend* installed for the current thread with ``attention_backend``: the step of an engine, or a probe at load time.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from parrot_kernels import Backend
from parrot_mq.errors import ConfigError
from parrot_workers.engine.models.model import REMEDY
from parrot_workers.engine.paged_cache import LayerShape, PagedCache
from parrot_workers.engine.step_batch import StepBatch

NAME = "parrot_paged"

_UNSUPPORTED = frozenset({"s_aux", "position_bias", "head_mask", "alibi", "sinks"})
"""Arguments that change the scores in a way this engine does not compute."""


class AttentionBackend(Protocol):
    """What an attention layer calls: tensors are [num_tokens, heads, head_dim], the answer is too."""

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scale: float,
        softcap: float | None,
        window: int | None,
    ) -> Tensor:
        """Return the attention's output [num_tokens, num_heads, value_dim]."""


class ShapeProbe:
    """A backend for one flat sequence at positions 0, 1, ...: it notes the shapes of the layers as they come by."""

    def __init__(self) -> None:
        self.shapes: dict[int, LayerShape] = {}
        self.num_calls = 0

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scale: float,
        softcap: float | None,
        window: int | None,
    ) -> Tensor:
        """Note the shapes; the answer has the right shape and no meaning."""
        self.num_calls += 1
        self.shapes[layer] = LayerShape(key.shape[1], key.shape[2], value.shape[2], window)
        return query.new_zeros(*query.shape[:2], value.shape[2])


class PagedStep:
    """The backend of one step: writes the new keys and values to the cache, then attends over it."""

    def __init__(self, kernels: Backend, batch: StepBatch, cache: PagedCache) -> None:
        self._kernels = kernels
        self._batch = batch
        self._cache = cache
        self._no_angles = torch.empty(batch.ids.shape[0], 0, device=batch.ids.device)

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scale: float,
        softcap: float | None,
        window: int | None,
    ) -> Tensor:
        """Store ``key`` and ``value``, return the paged attention of ``query``."""
        keys, values, scales = self._cache.keys[layer], self._cache.values[layer], self._cache.scales[layer]
        # Whatever position embedding there is, the model has applied it: nothing is left to rotate.
        angles = self._no_angles
        query = self._kernels.rope_and_store(
            query, key, value, angles, angles, self._batch.slots, keys, values,
            key_scale=scales.key, value_scale=scales.value,
        )  # fmt: skip
        out, _ = self._kernels.paged_attention(
            query, keys, values, self._batch.plan, scale=scale, softcap=softcap, window=window,
            key_scale=scales.key, value_scale=scales.value,
        )  # fmt: skip
        return out


class _Current(threading.local):
    backend: AttentionBackend | None = None


_current = _Current()


@contextlib.contextmanager
def attention_backend(backend: AttentionBackend) -> Iterator[None]:
    """Make the attention layers of this thread call ``backend``."""
    _current.backend = backend
    try:
        yield
    finally:
        _current.backend = None


def _forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls, tensors [1, heads, num_tokens, head_dim]; it wants [1, num_tokens, heads, value_dim]."""
    backend = _current.backend
    assert backend is not None, "the model ran outside an engine's step"
    unsupported = sorted(name for name in _UNSUPPORTED if kwargs.get(name) is not None)
    if unsupported or attention_mask is not None:
        what = ", ".join(unsupported) or "an attention mask of its own"
        raise ConfigError(f"{type(module).__name__} needs {what}, which the torch engine does not compute: {REMEDY}")
    layer = getattr(module, "layer_idx", None)
    if layer is None or not getattr(module, "is_causal", True):
        raise ConfigError(f"{type(module).__name__} is no causal self-attention of a decoder-only model: {REMEDY}")
    out = backend.attend(
        layer,
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        scale=scaling if scaling is not None else query.shape[-1] ** -0.5,
        softcap=softcap,
        window=sliding_window,
    )
    return out.unsqueeze(0), None


AttentionInterface.register(NAME, _forward)
