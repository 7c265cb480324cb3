"""What the steps of an engine take of a GPU's memory, found out by the largest one before the cache is made.

Weights aside that is what remains beside the cache: intermediate results, logits, captured graphs with their plans, and
what libraries allocate when they are first called.
"""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch

from parrot_kernels import BLOCK_SIZE
from parrot_mq.errors import ConfigError
from parrot_workers.engine.engine_settings import EngineSettings
from parrot_workers.engine.memory import device_available_bytes
from parrot_workers.engine.model_runner import ModelRunner
from parrot_workers.engine.step_batch import Span


def step_bytes(
    settings: EngineSettings, make_runner: Callable[[int], ModelRunner], *, block_bytes: int, max_model_len: int
) -> int:
    """Return the bytes that the device has less of when a runner, of so many blocks of ``block_bytes``, has captured
    its steps and run the largest; its cache is not counted.

    Raises ConfigError if not even that fits.
    """
    place = settings.place
    spans = largest_step(settings.max_num_batched_tokens, settings.max_num_rows, settings.max_num_seqs, max_model_len)
    num_blocks = sum(len(span.block_table) for span in spans)
    before = device_available_bytes(place)
    try:
        runner = make_runner(num_blocks)
        runner.run(spans)
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"a step of {settings.max_num_batched_tokens} tokens does not fit what is free on {place} beside the "
            f"model: lower max_num_batched_tokens or max_num_seqs, or give fewer buckets ({error})"
        ) from error
    _wait(place)
    taken = before - device_available_bytes(place) - num_blocks * block_bytes
    del runner
    gc.collect()
    _give_back(place)
    return max(0, taken)


def largest_step(max_num_tokens: int, max_num_rows: int, max_num_seqs: int, max_model_len: int) -> list[Span]:
    """Return a step of the most tokens and rows of logits: parts of prompts, of as many sequences as may run."""
    count = max(max_num_seqs, -(-max_num_tokens // max_model_len))
    spans, first = [], 0
    for i in range(count):
        num_tokens, num_rows = (total // count + (i < total % count) for total in (max_num_tokens, max_num_rows))
        blocks = range(first, first - (-num_tokens // BLOCK_SIZE))
        spans.append(Span([0] * num_tokens, 0, num_rows, blocks))
        first = blocks.stop
    return spans


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _give_back(device: torch.device) -> None:
    """Return what the allocator keeps of freed memory."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
