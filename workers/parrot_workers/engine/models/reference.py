"""Transformers' own modelling code: loaded from safetensors, without its chatter."""

from __future__ import annotations

import contextlib
import copy
import gc
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from parrot_mq.errors import ConfigError
from parrot_workers.engine.models.checkpoint import listed
from parrot_workers.engine.models.model import probe_ids

logger = logging.getLogger(__name__)

_PER_LAYER = ("layer_types", "no_rope_layers")
"""Fields of a configuration that hold one entry for each layer."""
_NO_THREADS = "HF_DEACTIVATE_ASYNC_LOAD"


def load_transformers(folder: Path, config: Any, dtype: torch.dtype, attention: str, *, is_part: bool = False) -> Any:
    """Return transformers' model on the CPU, ready to compute.

    Raises ConfigError if the folder lacks a tensor; what is there beyond is worth a warning unless ``is_part``.
    """
    auto: Any = transformers.AutoModelForCausalLM
    try:
        with _quiet():
            model, report = auto.from_pretrained(
                folder, config=config, dtype=dtype, attn_implementation=attention, use_safetensors=True,
                output_loading_info=True, ignore_mismatched_sizes=True,
            )  # fmt: skip
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise ConfigError(f"{str(folder)!r} cannot be loaded by the torch engine: {error}") from error
    # Both would be drawn at random.
    missing = sorted(report["missing_keys"])
    missing += sorted(
        f"{name} {list(wanted)} (it is {list(found)})" for name, found, wanted in report["mismatched_keys"]
    )
    if missing:
        raise ConfigError(f"{folder} lacks tensors that its config.json asks for: {listed(missing)}")
    if report["unexpected_keys"] and not is_part:
        unread = listed(sorted(report["unexpected_keys"]))
        logger.warning("%s holds tensors that its config.json does not speak of: %s", folder, unread)
    ready: torch.nn.Module = model.eval().requires_grad_(False)
    return ready


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
    with _in_one_thread():
        model = load_transformers(folder, config, dtype, "eager", is_part=True)
    logits: Tensor = model(input_ids=torch.tensor([probe_ids(config.vocab_size)]), use_cache=False).logits
    logits = logits[0, -1].float()
    del model
    gc.collect()  # its modules refer to one another in circles
    return logits


@contextlib.contextmanager
def _in_one_thread() -> Iterator[None]:
    """Let transformers read weights in this thread.

    What its helper threads allocate, and we free, stays in the arenas of those threads, which glibc never trims.
    """
    before = os.environ.get(_NO_THREADS)
    os.environ[_NO_THREADS] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_NO_THREADS]
        else:
            os.environ[_NO_THREADS] = before


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence progress bars and reports of unread tensors: what is wrong with a checkpoint is said by us."""
    log: Any = transformers.utils.logging
    had_bars, verbosity = log.is_progress_bar_enabled(), log.get_verbosity()
    log.disable_progress_bar()
    log.set_verbosity_error()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if had_bars:
            log.enable_progress_bar()
