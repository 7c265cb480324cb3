"""The next token of each sequence of a step: one batched pass over their logits, on the device that has them."""

from __future__ import annotations

import itertools
from collections import Counter

import torch
from torch import Tensor

from parrot_kernels import Backend
from parrot_workers.engine.host_copy import to_device
from parrot_workers.engine.noise import noise_key
from parrot_workers.engine.sequence import Sequence

NEVER = float("-inf")
MAX_TOP_K = 2**31 - 1
NO_NOISE = (0, 0)
"""The key of a greedy row."""


@torch.inference_mode()
def sample(kernels: Backend, logits: Tensor, sequences: list[Sequence], depths: list[int] | None = None) -> Tensor:
    """Return the next token id of each row, int64 [num_rows], on the device of ``logits``, which nobody waits for.

    ``logits`` [num_rows, vocab_size] are overwritten. Row i belongs to ``sequences[i]``, ``depths[i]`` tokens (default
    0) behind its last: rows of one sequence at depths 0, 1, ... verify a draft, and a row at depth 1 follows a token
    that is still being computed. Order: bias, penalties, minimum length, temperature, top-k, top-p, min-p
    (transformers' order), then arg-max, behind Gumbel noise where the temperature is not 0. Greedy rows are exact
    arg-max of the logits as they are.
    """
    if all(_is_plain(sequence) for sequence in sequences):
        return logits.argmax(-1)
    logits = logits.float()
    adjust(logits, sequences)
    if all(sequence.sampling.greedy for sequence in sequences):
        return logits.argmax(-1)
    return kernels.sample(logits, *parameters(sequences, depths or [0] * len(sequences), logits.device))


def _is_plain(sequence: Sequence) -> bool:
    return sequence.sampling.greedy and not sequence.is_adjusted


def parameters(
    sequences: list[Sequence], depths: list[int], device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return temperature, top_k, top_p, min_p and keys of the rows, as ``Backend.sample`` takes them."""
    count, params = len(sequences), [sequence.sampling for sequence in sequences]
    keys = [
        NO_NOISE if p.greedy else noise_key(sequence.seed, sequence.num_output_tokens + depth)
        for p, sequence, depth in zip(params, sequences, depths, strict=True)
    ]
    shares = ([p.temperature for p in params], [p.top_p for p in params], [p.min_p for p in params])
    temperature, top_p, min_p = to_device(shares, torch.float32, device).unbind()
    top_k = [min(p.top_k, MAX_TOP_K) for p in params]
    integers = to_device([*top_k, *itertools.chain.from_iterable(keys)], torch.int32, device)
    return temperature, integers[:count], top_p, min_p, integers[count:].view(count, 2)


def adjust(logits: Tensor, sequences: list[Sequence]) -> None:
    """Apply biases, penalties and the minimum length, in place. Sequences without any keep their rows untouched."""
    for row, sequence in enumerate(sequences):
        if sequence.is_adjusted:
            _adjust_row(logits[row], sequence)


def _adjust_row(logits: Tensor, sequence: Sequence) -> None:
    sampling, device = sequence.sampling, logits.device
    if sampling.logit_bias:
        ids = to_device(list(sampling.logit_bias), torch.int64, device)
        logits[ids] += to_device(list(sampling.logit_bias.values()), logits.dtype, device)
    if sampling.repetition_penalty != 1:
        ids = to_device(sorted(set(sequence.token_ids)), torch.int64, device)
        seen = logits[ids]
        logits[ids] = torch.where(seen < 0, seen * sampling.repetition_penalty, seen / sampling.repetition_penalty)
    if (sampling.presence_penalty or sampling.frequency_penalty) and sequence.num_output_tokens:
        counts = Counter(sequence.output_ids)
        ids = to_device(list(counts), torch.int64, device)
        times = to_device(list(counts.values()), logits.dtype, device)
        logits[ids] -= sampling.presence_penalty + sampling.frequency_penalty * times
    if sequence.num_output_tokens < sampling.min_tokens and sequence.stop_ids:
        logits.index_fill_(0, to_device(sorted(sequence.stop_ids), torch.int64, device), NEVER)
