"""The fast path: the Llama family, computed by the kernels alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from parrot_kernels import AttentionPlan, Backend, CapturedStep, backend_for
from parrot_workers.engine.memory import give_back_freed
from parrot_workers.engine.models.checkpoint import Checkpoint
from parrot_workers.engine.models.llama_shape import LlamaShape
from parrot_workers.engine.models.llama_weights import LlamaReader, LlamaWeights, llama_tensors
from parrot_workers.engine.models.model import Probe, probe_ids
from parrot_workers.engine.models.model_config import eos_ids, longest
from parrot_workers.engine.models.parallel import Shard
from parrot_workers.engine.models.reference import first_layers_logits
from parrot_workers.engine.models.rotary import rotary_tables
from parrot_workers.engine.paged_cache import LayerShape, PagedCache
from parrot_workers.engine.step_batch import StepBatch

PROBE_LAYERS = 2
"""Layers that are checked against transformers' code: it costs their memory, once, while the model is loaded."""


class LlamaNetwork:
    """The network alone: ``compute`` is a chain of calls of the backend's operations and of views of their results.

    Nothing in it depends on the data, and what it reads are the weights, the cache and the step's buffers, so that it
    can be captured (by a backend that records, or in a CUDA graph) and replayed. ``shape`` and ``weights`` are
    those of ``shard``, whose ranks compute together.
    """

    def __init__(self, shape: LlamaShape, weights: LlamaWeights, cos: Tensor, sin: Tensor, shard: Shard) -> None:
        self.shape = shape
        self.weights = weights
        self.cos = cos
        self.sin = sin
        self.shard = shard

    def compute(self, kernels: Backend, batch: StepBatch, cache: PagedCache) -> Tensor:
        """Return float32 logits [len(batch.rows), vocab_size]."""
        shape, weights, eps = self.shape, self.weights, self.shape.norm_eps
        heads, kv_heads, dim = shape.num_heads, shape.num_kv_heads, shape.head_dim
        cos, sin = kernels.gather(self.cos, batch.positions), kernels.gather(self.sin, batch.positions)
        hidden = kernels.gather(weights.embedding, batch.ids)
        normed = kernels.rms_norm(hidden, weights.layers[0].attention_norm, eps)
        for number, layer in enumerate(weights.layers):
            qkv = kernels.linear(normed, layer.qkv).view(-1, heads + 2 * kv_heads, dim)
            query, key, value = qkv[:, :heads], qkv[:, heads : heads + kv_heads], qkv[:, heads + kv_heads :]
            if layer.query_norm is not None and layer.key_norm is not None:
                query = kernels.rms_norm(query, layer.query_norm, eps)
                key = kernels.rms_norm(key, layer.key_norm, eps)
            # A layer without positions rotates no dimension.
            half = cos.shape[1] if shape.rotates[number] else 0
            keys, values = cache.keys[number], cache.values[number]
            scales = cache.scales[number]
            query = kernels.rope_and_store(
                query, key, value, cos[:, :half], sin[:, :half], batch.slots, keys, values,
                key_scale=scales.key, value_scale=scales.value,
            )  # fmt: skip
            attended, _ = kernels.paged_attention(
                query, keys, values, batch.plan, scale=dim**-0.5, window=shape.windows[number],
                key_scale=scales.key, value_scale=scales.value,
            )  # fmt: skip
            added = self.shard.total(kernels.linear(attended.view(-1, heads * dim), layer.output))
            normed, hidden = kernels.add_rms_norm(added, hidden, layer.mlp_norm, eps)
            gated = kernels.silu_mul(kernels.linear(normed, layer.gate_up))
            added = self.shard.total(kernels.linear(gated, layer.down))
            if number + 1 < len(weights.layers):
                normed, hidden = kernels.add_rms_norm(added, hidden, weights.layers[number + 1].attention_norm, eps)
        added, hidden = kernels.gather(added, batch.rows), kernels.gather(hidden, batch.rows)
        normed, _ = kernels.add_rms_norm(added, hidden, weights.norm, eps)
        return kernels.linear(normed, weights.head, torch.float32)

    def first_layers(self, count: int) -> LlamaNetwork:
        """Return the network that ends after ``count`` layers; the weights are shared."""
        weights = dataclasses.replace(self.weights, layers=self.weights.layers[:count])
        return LlamaNetwork(self.shape, weights, self.cos, self.sin, self.shard)


@dataclasses.dataclass
class LlamaModel:
    """See ``Model``. ``probe_logits`` are those that transformers' first ``PROBE_LAYERS`` layers give for the probe."""

    name: str
    network: LlamaNetwork
    kernels: Backend
    device: torch.device
    dtype: torch.dtype
    max_len: int | None
    eos_ids: frozenset[int]
    probe_logits: Tensor

    @property
    def vocab_size(self) -> int:
        """The length of a row of logits."""
        return self.network.shape.vocab_size

    @property
    def layers(self) -> dict[int, LayerShape]:
        """What each layer keeps."""
        shape = self.network.shape
        return {
            layer: LayerShape(shape.num_kv_heads, shape.head_dim, shape.head_dim, window)
            for layer, window in enumerate(shape.windows)
        }

    @property
    def weight_bytes(self) -> int:
        """Bytes of the packed weights and the rotary tables."""
        network = self.network
        return network.weights.nbytes + network.cos.nbytes + network.sin.nbytes

    @property
    def probe(self) -> Probe:
        """Against the first layers of transformers' model."""
        first = dataclasses.replace(self, network=self.network.first_layers(PROBE_LAYERS))
        return Probe(probe_ids(self.vocab_size), self.probe_logits, first)

    def forward(self, batch: StepBatch, cache: PagedCache) -> Tensor:
        """Compute a step; see ``Model``."""
        return self.network.compute(self.kernels, batch, cache)

    def capture(self, full: StepBatch, cache: PagedCache, buckets: Sequence[int] = ()) -> CapturedStep | None:
        """Have the backend capture the network, if it can; ranks that compute together run eagerly."""
        if self.network.shard.size > 1:
            return None

        def step(kernels: Backend, tokens: Sequence[Tensor], picked: Sequence[Tensor], plan: AttentionPlan) -> Tensor:
            (ids, positions, slots), (rows,) = tokens, picked
            return self.network.compute(kernels, StepBatch(ids, positions, slots, rows, plan), cache)

        return self.kernels.capture(
            step,
            tokens=[full.ids, full.positions, full.slots],
            picked=[full.rows],
            buckets=buckets,
            max_context=len(self.network.cos),
        )


def load_llama(
    checkpoint: Checkpoint,
    config: Any,
    shape: LlamaShape,
    *,
    dtype: torch.dtype,
    device: torch.device,
    max_model_len: int,
    shard: Shard,
) -> LlamaModel:
    """Load the part ``shard`` of a model of which the engine runs at most ``max_model_len`` positions.

    Raises ConfigError. Only the first rank, which makes the logits, has those of the probe.
    """
    folder = checkpoint.folder
    head = ["lm_head.weight"] if shape.is_tied else []
    checkpoint.require(llama_tensors(shape), ignored=["rotary_emb.inv_freq", *head])
    own_shape = shard.of(shape)
    # First, for it is freed again before the weights come.
    num_layers = min(PROBE_LAYERS, shape.num_layers)
    logits = torch.empty(0) if shard.rank else first_layers_logits(folder, config, dtype, num_layers)
    give_back_freed()
    kernels = backend_for(device)
    max_len = longest(config)
    weights = LlamaReader(checkpoint, shape, shard, kernels, dtype, device).read()
    cos, sin = rotary_tables(config, shape.head_dim, min(max_model_len, max_len or max_model_len))
    return LlamaModel(
        name=str(folder),
        network=LlamaNetwork(own_shape, weights, cos.to(device), sin.to(device), shard),
        kernels=kernels,
        device=device,
        dtype=dtype,
        max_len=max_len,
        eos_ids=eos_ids(folder, config),
        probe_logits=logits,
    )
