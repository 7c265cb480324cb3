"""The weights of the fast path: read layer by layer, fused, packed, and the originals let go."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from parrot_kernels import Backend, PackedLinear
from parrot_workers.engine.memory import give_back_freed
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
        is_tied = self.head.data.data_ptr() == self.embedding.data_ptr()  # a packed head is a copy
        return layers + self.embedding.nbytes + self.norm.nbytes + (0 if is_tied else self.head.nbytes)


def llama_tensors(shape: LlamaShape) -> dict[str, tuple[int, ...]]:
    """Return the shapes, by name, of the tensors that a checkpoint of this shape must hold."""
    hidden, inner, dim = shape.hidden_size, shape.intermediate_size, shape.head_dim
    heads, keys = shape.num_heads * dim, shape.num_kv_heads * dim
    if shape.is_fused:
        qkv, gate_up = {"qkv_proj": heads + 2 * keys}, {"gate_up_proj": 2 * inner}
    else:
        qkv, gate_up = {"q_proj": heads, "k_proj": keys, "v_proj": keys}, {"gate_proj": inner, "up_proj": inner}
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocab_size, hidden)}
    for layer in range(shape.num_layers):
        prefix = f"model.layers.{layer}"
        tensors[f"{prefix}.input_layernorm.weight"] = (hidden,)
        tensors[f"{prefix}.post_attention_layernorm.weight"] = (hidden,)
        if shape.has_head_norms:
            tensors[f"{prefix}.self_attn.q_norm.weight"] = tensors[f"{prefix}.self_attn.k_norm.weight"] = (dim,)
        for part, outs, in_features, has_bias in [
            ("self_attn", qkv, hidden, shape.has_qkv_bias),
            ("self_attn", {"o_proj": hidden}, heads, shape.has_output_bias),
            ("mlp", gate_up, hidden, shape.has_mlp_bias),
            ("mlp", {"down_proj": hidden}, inner, shape.has_mlp_bias),
        ]:
            for name, out_features in outs.items():
                tensors[f"{prefix}.{part}.{name}.weight"] = (out_features, in_features)
                if has_bias:
                    tensors[f"{prefix}.{part}.{name}.bias"] = (out_features,)
    tensors["model.norm.weight"] = (hidden,)
    if not shape.is_tied:
        tensors["lm_head.weight"] = (shape.vocab_size, hidden)
    return tensors


class LlamaReader:
    """Reads a checkpoint that holds ``llama_tensors`` into ``LlamaWeights`` in ``dtype`` on ``device``."""

    def __init__(
        self, checkpoint: Checkpoint, shape: LlamaShape, kernels: Backend, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._checkpoint = checkpoint
        self._shape = shape
        self._kernels = kernels
        self._dtype = dtype
        self._device = device

    def read(self) -> LlamaWeights:
        """Read everything."""
        # The head first: what is read and not yet packed is then never more than it while little else is there, and
        # never more than one layer later on.
        embedding = self._tensor("model.embed_tokens.weight")
        head = self._kernels.pack_linear(embedding if self._shape.is_tied else self._tensor("lm_head.weight"))
        norm = self._tensor("model.norm.weight")
        self._release()
        layers = tuple(self._layer(f"model.layers.{layer}") for layer in range(self._shape.num_layers))
        return LlamaWeights(embedding, layers, norm, head)

    def _layer(self, prefix: str) -> LlamaLayer:
        shape, attention, mlp = self._shape, f"{prefix}.self_attn", f"{prefix}.mlp"
        qkv = ["qkv_proj"] if shape.is_fused else ["q_proj", "k_proj", "v_proj"]
        gate_up = ["gate_up_proj"] if shape.is_fused else ["gate_proj", "up_proj"]
        read = LlamaLayer(
            attention_norm=self._tensor(f"{prefix}.input_layernorm.weight"),
            qkv=self._linear(attention, qkv, shape.has_qkv_bias),
            query_norm=self._tensor(f"{attention}.q_norm.weight") if shape.has_head_norms else None,
            key_norm=self._tensor(f"{attention}.k_norm.weight") if shape.has_head_norms else None,
            output=self._linear(attention, ["o_proj"], shape.has_output_bias),
            mlp_norm=self._tensor(f"{prefix}.post_attention_layernorm.weight"),
            gate_up=self._linear(mlp, gate_up, shape.has_mlp_bias),
            down=self._linear(mlp, ["down_proj"], shape.has_mlp_bias),
        )
        self._release()
        return read

    def _release(self) -> None:
        self._checkpoint.release()
        give_back_freed()

    def _linear(self, prefix: str, names: list[str], has_bias: bool) -> PackedLinear:
        """Pack the matrices ``names`` on top of each other."""
        weights = [self._tensor(f"{prefix}.{name}.weight") for name in names]
        biases = [self._tensor(f"{prefix}.{name}.bias") for name in names if has_bias]
        return self._kernels.pack_linear(torch.cat(weights), torch.cat(biases) if biases else None)

    def _tensor(self, name: str) -> Tensor:
        return self._checkpoint.read(name, self._dtype).to(self._device)
