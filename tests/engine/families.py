"""A tiny model of each family that the engine runs, with grouped queries where the family has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers

VOCAB_SIZE = 384
MAX_LEN = 160
_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": MAX_LEN, "bos_token_id": 0,
    "eos_token_id": 1, "pad_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip
_WITHOUT_GROUPS = {name: size for name, size in _SIZES.items() if name != "num_key_value_heads"}


def llama(**more: Any) -> Any:
    sizes = {"hidden_size": 48, "intermediate_size": 64, "num_attention_heads": 6, "head_dim": 8}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**_SIZES, **sizes, **more}))


def _llama_64() -> Any:
    """A head dimension that the compiled attention takes."""
    return llama(hidden_size=64, num_attention_heads=4, head_dim=64)


def _llama_biased() -> Any:
    return llama(attention_bias=True, mlp_bias=True)


def _mistral() -> Any:
    sizes = {**_SIZES, "tie_word_embeddings": True}
    return transformers.MistralForCausalLM(transformers.MistralConfig(**sizes, sliding_window=24))


def _qwen2() -> Any:
    """Biases on queries, keys and values; the last layer looks back 24 tokens."""
    config = transformers.Qwen2Config(**_SIZES, use_sliding_window=True, sliding_window=24, max_window_layers=1)
    return transformers.Qwen2ForCausalLM(config)


def _qwen3() -> Any:
    sizes = {"num_hidden_layers": 3, "num_key_value_heads": 1, "head_dim": 16, "tie_word_embeddings": True}
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**{**_SIZES, **sizes}))


def _smollm3() -> Any:
    """Every second layer has no positions."""
    config = transformers.SmolLM3Config(**{**_SIZES, "num_hidden_layers": 4}, no_rope_layer_interval=2)
    return transformers.SmolLM3ForCausalLM(config)


def phi3(**more: Any) -> Any:
    """Fused weights in the checkpoint; half of each head is rotated."""
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    return transformers.Phi3ForCausalLM(
        transformers.Phi3Config(**{**_SIZES, "rope_parameters": rope, "sliding_window": 40, **more})
    )


def _gpt2() -> Any:
    config = transformers.GPT2Config(
        vocab_size=VOCAB_SIZE, n_embd=32, n_layer=2, n_head=4, n_positions=MAX_LEN, bos_token_id=0, eos_token_id=1
    )
    return transformers.GPT2LMHeadModel(config)


def _gpt_neox() -> Any:
    """A quarter of each head is rotated, attention and MLP run side by side."""
    return transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**_WITHOUT_GROUPS))


def _gemma() -> Any:
    return transformers.GemmaForCausalLM(
        transformers.GemmaConfig(**{**_SIZES, "tie_word_embeddings": True}, head_dim=8)
    )


def _gemma2() -> Any:
    """Alternating sliding windows, soft-capped scores, a scale of its own."""
    config = transformers.Gemma2Config(
        **{**_SIZES, "tie_word_embeddings": True}, head_dim=8, sliding_window=24, attn_logit_softcapping=2.0,
        query_pre_attn_scalar=16,
    )  # fmt: skip
    return transformers.Gemma2ForCausalLM(config)


def _phi() -> Any:
    return transformers.PhiForCausalLM(transformers.PhiConfig(**_SIZES))


def _opt() -> Any:
    """Learned positions that start at the third row of their table."""
    sizes = {name: size for name, size in _WITHOUT_GROUPS.items() if name != "intermediate_size"}
    return transformers.OPTForCausalLM(transformers.OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32))


FAST: dict[str, Callable[[], Any]] = {
    "llama": llama,
    "llama_64": _llama_64,
    "llama_biased": _llama_biased,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "smollm3": _smollm3,
    "phi3": phi3,
}
"""What the fast path computes; the general one does too."""
GENERAL: dict[str, Callable[[], Any]] = {
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "phi": _phi,
    "opt": _opt,
}
