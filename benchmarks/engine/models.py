"""``python -m benchmarks.engine.models FOLDER MODEL DTYPE``: a model of random weights as a Hugging Face folder.

The same seed gives the same weights; bf16 is f32 rounded. The tokenizer is a byte-level BPE whose tokens after the
bytes are made-up words that begin with a space, so that any sequence of them is a text that encodes to the same ids
again: prompts are the same for a system that takes ids and for a server that takes text.
"""

from __future__ import annotations

import itertools
import os
import shutil
import sys
from pathlib import Path

import tokenizers
import torch
import transformers

from benchmarks.engine.shapes import DTYPES, SHAPES, ModelShape

SEED = 7
SPECIAL_TOKENS = ("<s>", "</s>")
_SPACE = "Ġ"
"""How byte-level BPE writes a space."""


def syllables() -> list[str]:
    return ["".join(pair) for pair in itertools.product("bcdfghjklmnpqrstvwxz", "aeiou")]


def build_tokenizer(vocab_size: int) -> tokenizers.Tokenizer:
    """Bytes, syllables, then words of one, two and three syllables as far as ``vocab_size`` goes."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    merges = [(part[0], part[1]) for part in syllables()]
    words = [(_SPACE, part) for part in syllables()]
    for start, part in itertools.product([_SPACE + part for part in syllables()], syllables()):
        words.append((start, part))
    for start, part in itertools.product([_SPACE + a + b for a in syllables() for b in syllables()], syllables()):
        if len(words) >= vocab_size:
            break
        words.append((start, part))
    merges = (merges + words)[: vocab_size - len(SPECIAL_TOKENS) - len(alphabet)]
    vocabulary = [*SPECIAL_TOKENS, *alphabet, *("".join(pair) for pair in merges)]
    model = tokenizers.models.BPE(vocab={token: index for index, token in enumerate(vocabulary)}, merges=merges)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def build_model(shape: ModelShape, device: str = "cpu") -> transformers.LlamaForCausalLM:
    """Return a model in float32; another kind of device gives other weights."""
    config = transformers.LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.max_len,
        tie_word_embeddings=shape.is_tied,
        bos_token_id=0,
        eos_token_id=1,
    )
    with torch.device(device):
        model = transformers.LlamaForCausalLM(config)
    generator = torch.Generator(device).manual_seed(SEED)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter.shape[1] ** -0.5, generator=generator)
    return model


def make(folder: Path, shape: ModelShape, dtype: str, device: str = "cpu") -> None:
    """Write the folder, whole or not at all."""
    partial = folder.with_name(f"{folder.name}.{os.getpid()}")
    build_model(shape, device).to(getattr(torch, DTYPES[dtype])).save_pretrained(partial)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer(shape.vocab_size), bos_token="<s>", eos_token="</s>"
    )
    fast.save_pretrained(partial)
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)


if __name__ == "__main__":
    make(Path(sys.argv[1]), SHAPES[sys.argv[2]], sys.argv[3])
