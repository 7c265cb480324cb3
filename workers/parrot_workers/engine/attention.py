"""The seam to transformers' modelling code: its attention layers call our paged attention.

A model loaded with ``attn_implementation=NAME`` calls ``_forward`` in each attention layer; what that does is up to the
*backend* installed for the current thread with ``attention_backend``: the step of an engine, or a probe at load time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

import parrot_kernels as kernels
from parrot_mq.errors import ConfigError
from parrot_workers.engine.untouched import untouched_zeros

NAME = "parrot_paged"
REMEDY = "choose another model, or serve it by vLLM as an engine of kind openai"

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


@dataclasses.dataclass(frozen=True, slots=True)
class LayerShape:
    """What a layer keeps per token, and how far back it looks (None: to the start)."""

    num_kv_heads: int
    key_dim: int
    value_dim: int
    window: int | None = None

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        """Bytes of keys and values per token."""
        return self.num_kv_heads * (self.key_dim + self.value_dim) * dtype.itemsize


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


class PagedCache:
    """Keys and values of all layers in blocks: [num_blocks, num_kv_heads, block_size, head_dim] each."""

    def __init__(
        self, layers: dict[int, LayerShape], num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        # Zeros, not empty: masked keys are read too, and 0 * NaN is NaN.
        self.keys = {
            layer: untouched_zeros((num_blocks, shape.num_kv_heads, block_size, shape.key_dim), dtype, device)
            for layer, shape in layers.items()
        }
        self.values = {
            layer: untouched_zeros((num_blocks, shape.num_kv_heads, block_size, shape.value_dim), dtype, device)
            for layer, shape in layers.items()
        }


class PagedStep:
    """The backend of one step: writes the new keys and values to the cache, then attends over it."""

    def __init__(self, cache: PagedCache, batch: kernels.RaggedBatch) -> None:
        self._cache = cache
        self._batch = batch

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
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        kernels.store_kv(key, value, keys, values, self._batch)
        out, _ = kernels.paged_attention(query, keys, values, self._batch, scale=scale, softcap=softcap, window=window)
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
