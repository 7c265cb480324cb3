"""Transformers' own modelling code: loaded from safetensors, without its chatter."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from parrot_mq.errors import ConfigError
from parrot_workers.engine.models.model import probe_ids

_PER_LAYER = ("layer_types", "no_rope_layers")
"""Fields of a configuration that hold one entry for each layer."""


def load_transformers(folder: Path, config: Any, dtype: torch.dtype, attention: str) -> Any:
    """Return transformers' model on the CPU, ready to compute. Raises ConfigError."""
    try:
        with _quiet():
            model: Any = transformers.AutoModelForCausalLM.from_pretrained(
                folder, config=config, dtype=dtype, attn_implementation=attention, use_safetensors=True
            )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise ConfigError(f"{str(folder)!r} cannot be loaded by the torch engine: {error}") from error
    return model.eval().requires_grad_(False)


@torch.inference_mode()
def first_layers_logits(folder: Path, config: Any, dtype: torch.dtype, num_layers: int) -> Tensor:
    """Return the float32 logits [vocab_size] after the probe's tokens of a model that ends after ``num_layers``.

    Only these layers, the embedding and the head are loaded, and freed again.
    """
    config = copy.deepcopy(config)
    config.num_hidden_layers = num_layers
    for field in _PER_LAYER:
        if getattr(config, field, None) is not None:
            setattr(config, field, getattr(config, field)[:num_layers])
    model = load_transformers(folder, config, dtype, "eager")
    logits: Tensor = model(input_ids=torch.tensor([probe_ids(config.vocab_size)]), use_cache=False).logits
    return logits[0, -1].float()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence progress bars and reports of unread tensors: what is wrong with a checkpoint is said by us."""
    logging: Any = transformers.utils.logging
    had_bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()
