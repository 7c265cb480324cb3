"""Which configurations the fast path computes, and what it needs to know of them."""

from __future__ import annotations

import dataclasses
from typing import Any

from parrot_mq.errors import ConfigError
from parrot_workers.engine.models.rotary import ROPE_TYPES


class NotLlama(ConfigError):
    """The fast path does not compute this model; the message says why not."""


@dataclasses.dataclass(frozen=True, slots=True)
class LlamaShape:
    """A decoder of the Llama family: RMS norms, rotary positions, grouped queries, SwiGLU.

    ``windows`` and ``rotates`` hold an entry for each layer: how far back it looks (None: to the start), and whether it
    has rotary positions at all. ``is_fused`` says that the checkpoint itself holds fused qkv and gate_up weights.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    windows: tuple[int | None, ...]
    rotates: tuple[bool, ...]
    has_qkv_bias: bool = False
    has_output_bias: bool = False
    has_mlp_bias: bool = False
    has_head_norms: bool = False
    is_tied: bool = False
    is_fused: bool = False


def llama_shape(config: Any) -> LlamaShape:
    """Return the shape of a model of transformers' configuration ``config``. Raises NotLlama."""
    kind = config.model_type
    if kind not in _BIASES:
        raise NotLlama(f"the fast path computes {', '.join(sorted(_BIASES))}, not {kind}")
    if getattr(config, "quantization_config", None) is not None:
        raise NotLlama("the fast path computes no quantized weights")
    if config.hidden_act not in ("silu", "swish"):
        raise NotLlama(f"the fast path computes silu, not {config.hidden_act}")
    rope = config.rope_parameters or {}
    if rope.get("rope_type") not in ROPE_TYPES:
        raise NotLlama(f"the fast path computes rotary positions {', '.join(sorted(ROPE_TYPES))}, not {rope}")
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    if heads % kv_heads:
        raise NotLlama(f"{heads} query heads are no multiple of {kv_heads} key-value heads")
    layers = config.num_hidden_layers
    qkv_bias, output_bias, mlp_bias = (
        bias if isinstance(bias, bool) else bool(getattr(config, bias)) for bias in _BIASES[kind]
    )
    return LlamaShape(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        norm_eps=config.rms_norm_eps,
        windows=_windows(config),
        rotates=tuple(map(bool, getattr(config, "no_rope_layers", None) or [1] * layers)),
        has_qkv_bias=qkv_bias,
        has_output_bias=output_bias,
        has_mlp_bias=mlp_bias,
        has_head_norms=kind == "qwen3",
        is_tied=bool(config.tie_word_embeddings),
        is_fused=kind == "phi3",
    )


_BIASES: dict[str, tuple[bool | str, bool | str, bool | str]] = {
    "llama": ("attention_bias", "attention_bias", "mlp_bias"),
    "mistral": (False, False, False),
    "phi3": (False, False, False),
    "qwen2": (True, False, False),
    "qwen3": ("attention_bias", "attention_bias", False),
    "smollm3": ("attention_bias", "attention_bias", "mlp_bias"),
}
"""By model type: whether qkv, the attention's output and the MLP have biases, or the field that says so."""


def _windows(config: Any) -> tuple[int | None, ...]:
    kinds: list[str] | None = getattr(config, "layer_types", None)
    window: int | None = getattr(config, "sliding_window", None)
    num_layers: int = config.num_hidden_layers
    if config.model_type in ("mistral", "phi3"):
        # Their layers all take the same window; a list of layer types would make transformers mask otherwise.
        if kinds is not None:
            raise NotLlama(f"the fast path computes no {config.model_type} with layer_types")
        return (window,) * num_layers
    if kinds is None:
        return (None,) * num_layers
    others = sorted(set(kinds) - {"full_attention", "sliding_attention"})
    if others:
        raise NotLlama(f"the fast path computes no {', '.join(others)}")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
