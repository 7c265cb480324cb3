"""The cache of a model, and the scales of one of float8: how large keys and values become."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from parrot_kernels import BLOCK_SIZE
from parrot_kernels.fp8 import FP8, LARGEST
from parrot_workers.engine.engine_settings import EngineSettings
from parrot_workers.engine.models.model import Model
from parrot_workers.engine.paged_cache import KVScale, PagedCache
from parrot_workers.engine.step_batch import Span, StepBuffers

NUM_TOKENS = 256
"""In one sequence: its first tokens have the largest keys."""
HEADROOM = 8.0
"""Other texts have larger ones, in the demo model more than twice as large. What is cut off costs more than what the
format loses at its other end, for its steps are relative down to the largest number / 2^15."""


def make_cache(settings: EngineSettings, model: Model, num_blocks: int) -> PagedCache:
    """Return the cache that ``settings`` ask for; several ranks must call it together."""
    dtype = settings.cache_dtype(model.dtype)
    scales = measured_scales(model, settings.model_len(model.max_len)) if dtype is FP8 else None
    return PagedCache(model.layers, num_blocks, dtype, model.device, scales)


@torch.inference_mode()
def measured_scales(model: Model, max_len: int) -> dict[int, KVScale]:
    """Return the scale of each layer's keys and values, from a step over tokens from all of the vocabulary.

    It has at most ``max_len`` tokens. Several ranks must call it together, for they compute the step together.
    """
    num_tokens = min(NUM_TOKENS, max_len)
    dice = random.Random(0)
    ids = [dice.randrange(model.vocab_size) for _ in range(num_tokens)]
    blocks = range(-(-num_tokens // BLOCK_SIZE))
    cache = PagedCache(model.layers, len(blocks), model.dtype, model.device)
    batch = StepBuffers(num_tokens, model.device, max_num_rows=1).fill([Span(ids, 0, 1, blocks)])
    model.forward(batch, cache)
    return {layer: KVScale(_scale(cache.keys[layer]), _scale(cache.values[layer])) for layer in model.layers}


def _scale(cache: Tensor) -> float:
    largest = float(cache.abs().max())
    return HEADROOM * largest / LARGEST if largest else 1.0
