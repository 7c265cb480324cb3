"""From a folder or an id to a model: the fast path where it computes the model, else the general one."""

from __future__ import annotations

import enum
import logging
from pathlib import Path
from typing import Any

import torch

from parrot_mq.errors import ConfigError
from parrot_workers.engine.memory import device_available_bytes
from parrot_workers.engine.models.checkpoint import Checkpoint
from parrot_workers.engine.models.general import GeneralModel
from parrot_workers.engine.models.llama import load_llama
from parrot_workers.engine.models.llama_shape import LlamaShape, NotLlama, llama_shape
from parrot_workers.engine.models.model import Model
from parrot_workers.engine.models.model_config import model_folder, parse_dtype, read_config
from parrot_workers.engine.models.parallel import Shard

logger = logging.getLogger(__name__)

DEFAULT_MAX_MODEL_LEN = 8192
HEAD = "lm_head.weight"
WHOLE = Shard()


class ModelPath(enum.StrEnum):
    """Who computes a model: AUTO is FAST where that path computes the model, else GENERAL."""

    AUTO = "auto"
    FAST = "fast"
    GENERAL = "general"


def load_model(
    model: str,
    *,
    device: torch.device,
    dtype: str | torch.dtype = "auto",
    path: str = ModelPath.AUTO,
    max_model_len: int | None = None,
    shard: Shard = WHOLE,
) -> Model:
    """Load a model folder or id. Raises ConfigError, with a remedy, for anything the engine cannot run.

    ``dtype`` "auto" is the checkpoint's own; ``max_model_len`` bounds the positions that will be computed. Of several
    ranks each loads its ``shard``; that takes the fast path.
    """
    if path not in list(ModelPath):
        raise ConfigError(f"path {path!r} is none of {', '.join(ModelPath)}")
    if shard.size > 1 and path == ModelPath.GENERAL:
        raise ConfigError("tensor_parallel_size above 1 is for models of the fast path: use path='auto'")
    target = parse_dtype(dtype)
    folder = model_folder(model)
    config = read_config(folder)
    checkpoint = Checkpoint(folder)
    target = target or config.dtype or checkpoint.dtype
    shape = _fast_shape(config, folder, path if shard.size == 1 else ModelPath.FAST)
    _require_memory(checkpoint, config, shape, target, device, shard)
    if shape is None:
        return GeneralModel(folder, config, dtype=target, device=device)
    return load_llama(
        checkpoint,
        config,
        shape,
        dtype=target,
        device=device,
        max_model_len=max_model_len or DEFAULT_MAX_MODEL_LEN,
        shard=shard,
    )


def _fast_shape(config: Any, folder: Path, path: str) -> LlamaShape | None:
    """Return the shape for the fast path, None for the general one. Raises NotLlama if that is not what is wanted."""
    if path == ModelPath.GENERAL:
        return None
    try:
        return llama_shape(config)
    except NotLlama as reason:
        if path == ModelPath.FAST:
            raise
        logger.info("%s is computed by transformers' code: %s", folder, reason)
        return None


def _require_memory(
    checkpoint: Checkpoint,
    config: Any,
    shape: LlamaShape | None,
    dtype: torch.dtype,
    device: torch.device,
    shard: Shard,
) -> None:
    """Raise ConfigError if the weights in ``dtype`` do not fit the memory that is free.

    A GPU holds one rank, a CPU all of them; each rank has the embedding and the head, which are one if they are tied.
    """
    is_tied = config.get_text_config().tie_word_embeddings
    elements = checkpoint.num_elements()
    if is_tied and HEAD in checkpoint:
        elements -= checkpoint.num_elements(HEAD)
    if shape is not None:
        repeated = (1 if is_tied else 2) * shape.vocab_size * shape.hidden_size
        on_device = 1 if device.type == "cuda" else shard.size
        elements = (elements - repeated) * on_device // shard.size + repeated * on_device
    needed, free = elements * dtype.itemsize, device_available_bytes(device)
    if needed > free:
        smaller = "dtype='bfloat16', " if dtype.itemsize > 2 else ""
        raise ConfigError(
            f"{checkpoint.folder} needs {needed / 2**30:.3g} GiB for its weights in {_short(dtype)}, but "
            f"{free / 2**30:.3g} GiB are free on {device}: use {smaller}another device, or tensor_parallel_size over "
            "several"
        )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
