"""The weights of the fast path: read layer by layer, fused, packed, and the originals let go."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from parrot_kernels import Backend, PackedLinear
from parrot_workers.engine.models.checkpoint import Checkpoint
from parrot_workers.engine.models.llama_shape import LlamaShape


@dataclasses.dataclass(frozen=True, slots=True)
class LlamaLayer:
    """One layer. ``qkv`` gives queries, keys and values next to each other, ``gate_up`` gate and up."""

    attention_norm: Tensor
    qkv: PackedLinear
    query_norm: Tensor | None
    key_norm: Tensor | None
    output: PackedLinear
    mlp_norm: Tensor
    gate_up: PackedLinear
    down: PackedLinear

    @property
    def nbytes(self) -> int:
        """Bytes it takes."""
        norms = [self.attention_norm, self.mlp_norm, self.query_norm, self.key_norm]
        linears = [self.qkv, self.output, self.gate_up, self.down]
        return sum(norm.nbytes for norm in norms if norm is not None) + sum(linear.nbytes for linear in linears)


@dataclasses.dataclass(frozen=True, slots=True)
class LlamaWeights:
    """All of a model. ``embedding`` [vocab_size, hidden] is held beside ``head`` even if the two are tied, for the head
    is packed for the matrix product.
    """

    embedding: Tensor
    layers: tuple[LlamaLayer, ...]
    norm: Tensor
    head: PackedLinear

    @property
    def nbytes(self) -> int:
        """Bytes they take."""
        layers = sum(layer.nbytes for layer in self.layers)
        return layers + self.embedding.nbytes + self.norm.nbytes + self.head.nbytes


class LlamaReader:
    """Reads a checkpoint into ``LlamaWeights`` in ``dtype`` on ``device``; see ``Checkpoint`` for what it raises."""

    def __init__(
        self, checkpoint: Checkpoint, shape: LlamaShape, kernels: Backend, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._checkpoint = checkpoint
        self._shape = shape
        self._kernels = kernels
        self._dtype = dtype
        self._device = device

    def read(self) -> LlamaWeights:
        """Read everything; the checkpoint must hold nothing else."""
        shape = self._shape
        matrix = (shape.vocab_size, shape.hidden_size)
        embedding = self._tensor("model.embed_tokens.weight", matrix)
        layers = tuple(self._layer(layer) for layer in range(shape.num_layers))
        norm = self._tensor("model.norm.weight", (shape.hidden_size,))
        head = self._kernels.pack_linear(embedding if shape.is_tied else self._tensor("lm_head.weight", matrix))
        self._checkpoint.release()
        ignored = ["rotary_emb.inv_freq", *(["lm_head.weight"] if shape.is_tied else [])]
        self._checkpoint.require_all_read(ignored)
        return LlamaWeights(embedding, layers, norm, head)

    def _layer(self, layer: int) -> LlamaLayer:
        shape, prefix = self._shape, f"model.layers.{layer}"
        hidden, inner, head_dim = shape.hidden_size, shape.intermediate_size, shape.head_dim
        heads, keys = shape.num_heads * head_dim, shape.num_kv_heads * head_dim
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        has_norms = shape.has_head_norms
        if shape.is_fused:
            qkv_parts, mlp_parts = {"qkv_proj": heads + 2 * keys}, {"gate_up_proj": 2 * inner}
        else:
            qkv_parts = {"q_proj": heads, "k_proj": keys, "v_proj": keys}
            mlp_parts = {"gate_proj": inner, "up_proj": inner}
        read = LlamaLayer(
            attention_norm=self._tensor(f"{prefix}.input_layernorm.weight", (hidden,)),
            qkv=self._linear(attention, qkv_parts, hidden, shape.has_qkv_bias),
            query_norm=self._tensor(f"{attention}.q_norm.weight", (head_dim,)) if has_norms else None,
            key_norm=self._tensor(f"{attention}.k_norm.weight", (head_dim,)) if has_norms else None,
            output=self._linear(attention, {"o_proj": hidden}, heads, shape.has_output_bias),
            mlp_norm=self._tensor(f"{prefix}.post_attention_layernorm.weight", (hidden,)),
            gate_up=self._linear(mlp, mlp_parts, hidden, shape.has_mlp_bias),
            down=self._linear(mlp, {"down_proj": hidden}, inner, shape.has_mlp_bias),
        )
        self._checkpoint.release()
        return read

    def _linear(self, prefix: str, parts: dict[str, int], in_features: int, has_bias: bool) -> PackedLinear:
        """Pack the matrices ``parts`` (name: rows) on top of each other."""
        weights = [self._tensor(f"{prefix}.{name}.weight", (rows, in_features)) for name, rows in parts.items()]
        biases = [self._tensor(f"{prefix}.{name}.bias", (rows,)) for name, rows in parts.items() if has_bias]
        return self._kernels.pack_linear(torch.cat(weights), torch.cat(biases) if biases else None)

    def _tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return self._checkpoint.read(name, shape, self._dtype).to(self._device)
