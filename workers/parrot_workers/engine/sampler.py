"""The next token of each sequence of a step: one batched pass over their logits."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from parrot_workers.engine.noise import gumbel_noise
from parrot_workers.engine.sequence import Sequence

NEVER = float("-inf")


@torch.inference_mode()
def sample(logits: Tensor, sequences: list[Sequence], depths: list[int] | None = None) -> list[int]:
    """Return the next token id of each row; ``logits`` [num_rows, vocab_size] are overwritten.

    Row i belongs to ``sequences[i]``, ``depths[i]`` tokens (default 0) behind its last: rows of one sequence at depths
    0, 1, ... verify a draft. Order: bias, penalties, minimum length, temperature, top-k, top-p, min-p (transformers'
    order), then arg-max, behind Gumbel noise where the temperature is not 0. Greedy rows are exact arg-max of the
    logits as they are.
    """
    if all(_is_plain(sequence) for sequence in sequences):
        return _to_list(logits.argmax(-1))
    depths = depths or [0] * len(sequences)
    logits = logits.float()
    adjust(logits, sequences)
    rows = [row for row, sequence in enumerate(sequences) if not sequence.sampling.greedy]
    if rows:
        sampled = [sequences[row] for row in rows]
        index = torch.tensor(rows, device=logits.device)
        chosen = warp(logits[index] if len(rows) < len(sequences) else logits, sampled)
        keys = [(sequences[row].seed, sequences[row].num_output_tokens + depths[row]) for row in rows]
        logits[index] = chosen + gumbel_noise(keys, chosen.shape[1], chosen.device)
    return _to_list(logits.argmax(-1))


def _is_plain(sequence: Sequence) -> bool:
    return sequence.sampling.greedy and not sequence.is_adjusted


def _to_list(ids: Tensor) -> list[int]:
    values: list[int] = ids.tolist()
    return values


def adjust(logits: Tensor, sequences: list[Sequence]) -> None:
    """Apply biases, penalties and the minimum length, in place. Sequences without any keep their rows untouched."""
    for row, sequence in enumerate(sequences):
        if sequence.is_adjusted:
            _adjust_row(logits[row], sequence)


def _adjust_row(logits: Tensor, sequence: Sequence) -> None:
    sampling, device = sequence.sampling, logits.device
    if sampling.logit_bias:
        ids = torch.tensor(list(sampling.logit_bias), device=device)
        logits[ids] += torch.tensor(list(sampling.logit_bias.values()), dtype=logits.dtype, device=device)
    if sampling.repetition_penalty != 1:
        ids = torch.tensor(sorted(set(sequence.token_ids)), device=device)
        seen = logits[ids]
        logits[ids] = torch.where(seen < 0, seen * sampling.repetition_penalty, seen / sampling.repetition_penalty)
    if (sampling.presence_penalty or sampling.frequency_penalty) and sequence.num_output_tokens:
        counts = Counter(sequence.output_ids)
        ids = torch.tensor(list(counts), device=device)
        times = torch.tensor(list(counts.values()), dtype=logits.dtype, device=device)
        logits[ids] -= sampling.presence_penalty + sampling.frequency_penalty * times
    if sequence.num_output_tokens < sampling.min_tokens and sequence.stop_ids:
        logits[torch.tensor(sorted(sequence.stop_ids), device=device)] = NEVER


def warp(logits: Tensor, sequences: list[Sequence]) -> Tensor:
    """Return the rows with temperature, top-k, top-p and min-p applied: -inf where a token may not be drawn."""
    params = [sequence.sampling for sequence in sequences]
    vocab_size = logits.shape[1]
    logits = logits / _column([p.temperature for p in params], logits)
    if any(p.top_k or p.top_p < 1 for p in params):
        logits = _top_k_top_p(
            logits,
            _column([min(p.top_k, vocab_size) or vocab_size for p in params], logits),
            _column([p.top_p for p in params], logits),
        )
    if any(p.min_p for p in params):
        # min_p times the best token's probability; the normalisation cancels.
        floor = logits.amax(-1, keepdim=True) + _column([p.min_p for p in params], logits).log()
        logits = logits.masked_fill(logits < floor, NEVER)
    return logits


def _column(values: list[float] | list[int], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]


def _top_k_top_p(logits: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Keep the ``top_k`` best, then the fewest of these that hold ``top_p`` of their probability; ties at k stay."""
    ordered, index = logits.sort(-1, descending=True)
    kth = ordered.gather(-1, top_k.long() - 1)
    ordered = ordered.masked_fill(ordered < kth, NEVER)
    probabilities = ordered.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    dropped = before >= top_p
    dropped[:, 0] = False
    # With top_p = 1 nothing is dropped, whatever the sum's rounding says.
    dropped &= top_p < 1
    ordered = ordered.masked_fill(dropped, NEVER)
    return torch.empty_like(logits).scatter_(-1, index, ordered)
