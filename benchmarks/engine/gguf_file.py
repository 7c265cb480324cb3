"""llama.cpp's file of a model, written from its Hugging Face folder. Needs ``gguf`` and numpy."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np

_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "embed_tokens": "token_embd",
    "norm": "output_norm",
}


def gguf_of(folder: Path) -> Path:
    """Return the file beside the folder's weights; it is written if it is not there yet."""
    path = folder / "model.gguf"
    if not path.exists():
        partial = folder / f"model.gguf.{os.getpid()}"
        _write(partial, json.loads((folder / "config.json").read_text()), read_safetensors(folder))
        partial.rename(path)
    return path


def read_safetensors(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Give names and tensors; bfloat16, which numpy lacks, as uint16."""
    dtypes = {"F32": np.dtype(np.float32), "BF16": np.dtype(np.uint16)}
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as source:
            header_bytes = int.from_bytes(source.read(8), "little")
            header = json.loads(source.read(header_bytes))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            start, _ = entry["data_offsets"]
            yield (
                name,
                np.memmap(
                    file, dtypes[entry["dtype"]], "r", offset=8 + header_bytes + start, shape=tuple(entry["shape"])
                ),
            )


def _write(path: Path, config: dict[str, Any], tensors: Iterator[tuple[str, np.ndarray]]) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    is_bf16 = config["dtype"] == "bfloat16"
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16 if is_bf16 else gguf.LlamaFileType.ALL_F32)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_tokenizer_model("no_vocab")
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for name, tensor in tensors:
        target = _name(name)
        kind = target.split(".")[-2]
        if kind in heads:
            tensor = _interleaved(tensor, heads[kind])
        if tensor.dtype == np.uint16 and tensor.ndim == 1:  # the norms' weights must be float32
            tensor = (tensor.astype(np.uint32) << 16).view(np.float32)
        raw = gguf.GGMLQuantizationType.BF16 if tensor.dtype == np.uint16 else None
        writer.add_tensor(target, np.ascontiguousarray(tensor), raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _name(name: str) -> str:
    if name == "lm_head.weight":
        return "output.weight"
    parts = name.removeprefix("model.").removesuffix(".weight").split(".")
    if parts[0] == "layers":
        return f"blk.{parts[1]}.{_NAMES['.'.join(parts[2:])]}.weight"
    return f"{_NAMES['.'.join(parts)]}.weight"


def _interleaved(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """From rotary pairs (i, i + half) to llama.cpp's (2 i, 2 i + 1). ``weight`` [heads * dim, in]."""
    heads = weight.reshape(num_heads, 2, weight.shape[0] // num_heads // 2, weight.shape[1])
    return heads.swapaxes(1, 2).reshape(weight.shape)
