"""The weights of the fast path: read layer by layer, fused, packed, and the originals let go."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from parrot_kernels import Backend, PackedLinear
from parrot_workers.engine.memory import give_back_freed
from parrot_workers.engine.models.checkpoint import Checkpoint
from parrot_workers.engine.models.llama_shape import LlamaShape
from parrot_workers.engine.models.parallel import Shard

ALL = slice(None)


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
    """All of a model. ``embedding`` [vocab_size, hidden] is ``head`` itself if the checkpoint ties the two."""

    embedding: Tensor | PackedLinear
    layers: tuple[LlamaLayer, ...]
    norm: Tensor
    head: PackedLinear

    @property
    def nbytes(self) -> int:
        """Bytes they take."""
        layers = sum(layer.nbytes for layer in self.layers)
        is_tied = self.embedding is self.head
        return layers + self.norm.nbytes + self.head.nbytes + (0 if is_tied else self.embedding.nbytes)


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
    """Reads the part ``shard`` of a checkpoint that holds ``llama_tensors``, in ``dtype`` on ``device``.

    ``shape`` is the whole model's.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        shape: LlamaShape,
        shard: Shard,
        kernels: Backend,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._checkpoint = checkpoint
        self._shape = shape
        self._shard = shard
        self._kernels = kernels
        self._dtype = dtype
        self._device = device

    def read(self) -> LlamaWeights:
        """Read everything."""
        # The head first: what is read and not yet packed is then never more than it while little else is there, and
        # never more than one layer later on.
        is_tied = self._shape.is_tied
        head = self._kernels.pack_linear(self._tensor("model.embed_tokens.weight" if is_tied else "lm_head.weight"))
        embedding = head if is_tied else self._tensor("model.embed_tokens.weight")
        norm = self._tensor("model.norm.weight")
        self._release()
        layers = tuple(self._layer(f"model.layers.{layer}") for layer in range(self._shape.num_layers))
        return LlamaWeights(embedding, layers, norm, head)

    def _layer(self, prefix: str) -> LlamaLayer:
        shape, attention, mlp = self._shape, f"{prefix}.self_attn", f"{prefix}.mlp"
        heads, keys, inner = (
            shape.num_heads * shape.head_dim,
            shape.num_kv_heads * shape.head_dim,
            shape.intermediate_size,
        )
        part = self._shard.part
        if shape.is_fused:
            qkv = [("qkv_proj", part(heads)), ("qkv_proj", part(keys, heads)), ("qkv_proj", part(keys, heads + keys))]
            gate_up = [("gate_up_proj", part(inner)), ("gate_up_proj", part(inner, inner))]
        else:
            qkv = [("q_proj", part(heads)), ("k_proj", part(keys)), ("v_proj", part(keys))]
            gate_up = [("gate_proj", part(inner)), ("up_proj", part(inner))]
        # What the ranks make of their columns is summed, so that one of them adds the bias.
        is_first = self._shard.rank == 0
        read = LlamaLayer(
            attention_norm=self._tensor(f"{prefix}.input_layernorm.weight"),
            qkv=self._linear(attention, qkv, shape.has_qkv_bias),
            query_norm=self._tensor(f"{attention}.q_norm.weight") if shape.has_head_norms else None,
            key_norm=self._tensor(f"{attention}.k_norm.weight") if shape.has_head_norms else None,
            output=self._linear(attention, [("o_proj", ALL)], shape.has_output_bias and is_first, part(heads)),
            mlp_norm=self._tensor(f"{prefix}.post_attention_layernorm.weight"),
            gate_up=self._linear(mlp, gate_up, shape.has_mlp_bias),
            down=self._linear(mlp, [("down_proj", ALL)], shape.has_mlp_bias and is_first, part(inner)),
        )
        self._release()
        return read

    def _linear(
        self, prefix: str, parts: list[tuple[str, slice]], has_bias: bool, columns: slice | None = None
    ) -> PackedLinear:
        """Pack rows of matrices (name, which) on top of each other."""
        weights = [self._tensor(f"{prefix}.{name}.weight", rows, columns) for name, rows in parts]
        biases = [self._tensor(f"{prefix}.{name}.bias", rows) for name, rows in parts if has_bias]
        return self._kernels.pack_linear(torch.cat(weights), torch.cat(biases) if biases else None)

    def _release(self) -> None:
        self._checkpoint.release()
        give_back_freed()

    def _tensor(self, name: str, rows: slice = ALL, columns: slice | None = None) -> Tensor:
        return self._checkpoint.read(name, self._dtype, rows=rows, columns=columns).to(self._device)
