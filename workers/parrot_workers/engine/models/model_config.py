"""A model's folder and what its configuration files say, whichever path computes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import transformers

from parrot_mq.errors import ConfigError
from parrot_workers.engine.models.model import REMEDY

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_LENGTH_FIELDS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")
_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
"""What is fetched of a model that is given by its id."""


def model_folder(model: str) -> Path:
    """Return the folder of a model folder or Hugging Face id (fetched if need be). Raises ConfigError."""
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if "/" not in model or model.startswith((".", "/", "~")):
        raise ConfigError(f"there is no model folder {model!r}: give a Hugging Face folder, or owner/name of one")
    try:
        return Path(huggingface_hub.snapshot_download(model, allow_patterns=_FILES))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{model!r} is no folder here, and it cannot be fetched: {error}") from error


def read_config(folder: Path) -> Any:
    """Return transformers' configuration of a decoder-only model. Raises ConfigError."""
    try:
        config = transformers.AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{str(folder)!r} is no model that transformers can read: {error}") from error
    if getattr(config, "is_encoder_decoder", False):
        raise ConfigError(f"{str(folder)!r} is an encoder-decoder model, not decoder-only: {REMEDY}")
    if type(config) not in transformers.AutoModelForCausalLM._model_mapping:
        raise ConfigError(f"{str(folder)!r} ({config.model_type}) is no decoder-only language model: {REMEDY}")
    return config


def parse_dtype(dtype: str | torch.dtype) -> torch.dtype | None:
    """Return a torch dtype, or None for the checkpoint's own ("auto"). Raises ConfigError."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype != "auto" and dtype not in _DTYPES:
        raise ConfigError(f"dtype {dtype!r} is none of auto, {', '.join(_DTYPES)}")
    return _DTYPES.get(dtype)


def longest(config: Any) -> int | None:
    """Return the most positions that the model knows, None if there is no bound."""
    lengths = [length for field in _LENGTH_FIELDS if (length := getattr(config, field, None))][:1]
    rope = getattr(config, "rope_parameters", None) or {}
    for part in [rope] if "rope_type" in rope else rope.values():
        # Beyond this length the model turns all positions of the batch by other angles: no batch of several sequences,
        # and no cache, could follow.
        if isinstance(part, dict) and part.get("rope_type") == "longrope":
            lengths.append(part.get("original_max_position_embeddings") or config.original_max_position_embeddings)
    return min(lengths, default=None)


def eos_ids(folder: Path, config: Any) -> frozenset[int]:
    """Return the tokens that end an output: those of generation_config.json, else the configuration's."""
    eos = None
    if (folder / "generation_config.json").is_file():
        eos = transformers.GenerationConfig.from_pretrained(folder).eos_token_id
    if eos is None:
        eos = config.get_text_config().eos_token_id
    return frozenset([eos] if isinstance(eos, int) else eos or ())
