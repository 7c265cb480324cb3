"""The next token of each row of logits, drawn in one launch without a sort and without the host waiting for anything.

A draw is the arg-max of logits plus Gumbel noise (Gumbel 1954) over the tokens that top-k, top-p and min-p allow. All
three allow a token if they allow a less probable one. So a token is drawn from all first, and then it is asked whether
it is allowed, which takes one pass that counts and weighs the tokens above it. If it is not, no token below it is
either: the next one is drawn from those above it, with the same noise, until one is. That token is the arg-max over the
allowed ones, exactly, since a larger set's arg-max is a smaller one's if it lies in it. Rejection in place of a sort is
FlashInfer's idea (Ye et al., 2025); with fixed noise it finds one certain token.

A row is cut into splits, so that one row occupies many multiprocessors; each writes its best token, and the last to
arrive goes on alone. Bytes moved per row of vocab logits: 4 * vocab for the draw, from memory; 4 * vocab for the check
of top-k or top-p, from the cache and by one multiprocessor; two or more such passes per further draw. Rarely, where
both top-k and top-p hold and the answer hangs on the probability of the k best, a bisection adds some.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from parrot_kernels.checks import check_sampling
from parrot_kernels.gpu.device import num_sms, on_device_of
from parrot_kernels.gpu.gumbel import gumbel_noise
from parrot_kernels.gpu.launch import Launch, launch_for

_NEVER = tl.constexpr(float("-inf"))
_ALWAYS = tl.constexpr(float("inf"))
_NEGLIGIBLE = tl.constexpr(32.0)
"""A token this far below the best one has a probability below float32's rounding, times 2 ** 20 of them."""


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    keys: Tensor,
    launch: Launch | None = None,
) -> Tensor:
    """Return a token id for each row of ``logits`` [rows, vocab] in float32 (rows may be strided), as int64 [rows].

    The others say how, and lie on the same device: ``temperature`` float32 [rows], 0 for the arg-max (the lowest id of
    equals); ``top_k`` int32 [rows], 0 for all; ``top_p`` float32 [rows], 1 for all; ``min_p`` float32 [rows], 0 for
    all; ``keys`` int32 [rows, 2], whatever makes the noise differ from row to row and step to step. They apply in that
    order. Tokens that tie with the last one allowed are allowed. NaN is never drawn unless a row holds nothing else.

    The noise is that of the torch twin, ``parrot_kernels.sampling``, and the token that which it draws, with these
    differences, all of rounding: two tokens whose noisy logits tie to the last bits may change places, and so may
    one whose preceding probability is ``top_p`` to the last bits; of tokens equal to the last one in ``top_p``, torch
    keeps some, this all. Raises ``KernelInputError``.
    """
    rows, vocab = check_sampling(logits, temperature, top_k, top_p, min_p, keys)
    device = logits.device
    launch = launch or launch_for(device, "sampling", vocab)
    splits = max(1, min(num_sms(device) // max(rows, 1), triton.cdiv(vocab, launch.block)))
    per_split = triton.cdiv(triton.cdiv(vocab, splits), launch.block) * launch.block
    splits = triton.cdiv(vocab, per_split)
    ids = torch.empty(rows, dtype=torch.int64, device=device)
    # Of each row and split: the best noisy value and the highest logit; the token of the former.
    values = torch.empty(rows, splits, 2, dtype=torch.float32, device=device)
    tokens = torch.empty(rows, splits, dtype=torch.int32, device=device)
    arrived = torch.zeros(rows, dtype=torch.int32, device=device)
    with on_device_of(logits):
        _sample[rows, splits](
            logits, temperature, top_k, top_p, min_p, keys, ids, values, tokens, arrived, logits.stride(0), vocab,
            per_split, MAX_SPLITS=triton.next_power_of_2(num_sms(device)), BLOCK=launch.block,
            num_warps=launch.num_warps,
        )  # fmt: skip
    return ids


# Where a step puts what it uploads must not matter: it is compiled once for a size of the vocabulary.
@triton.jit(do_not_specialize_on_alignment=["temperature_ptr", "top_k_ptr", "top_p_ptr", "min_p_ptr", "keys_ptr"])
def _sample(
    logits_ptr: tl.tensor,
    temperature_ptr: tl.tensor,
    top_k_ptr: tl.tensor,
    top_p_ptr: tl.tensor,
    min_p_ptr: tl.tensor,
    keys_ptr: tl.tensor,
    ids_ptr: tl.tensor,
    values_ptr: tl.tensor,
    tokens_ptr: tl.tensor,
    arrived_ptr: tl.tensor,
    stride: tl.tensor,
    vocab: tl.tensor,
    per_split: tl.tensor,
    MAX_SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Programs: rows x splits of ``per_split`` tokens, a multiple of BLOCK; none is empty.

    The number of splits is no constant, for it follows from that of the rows, and nothing is compiled between steps.
    """
    row = tl.program_id(0)
    split = tl.program_id(1)
    splits = tl.num_programs(1)
    logits_ptr += row.to(tl.int64) * stride
    temperature = tl.load(temperature_ptr + row)
    key_a = tl.load(keys_ptr + 2 * row).to(tl.uint32, bitcast=True)
    key_b = tl.load(keys_ptr + 2 * row + 1).to(tl.uint32, bitcast=True)
    start = split * per_split
    end = tl.minimum(start + per_split, vocab)
    best, token, top = _draw(logits_ptr, start, end, temperature, key_a, key_b, _NEVER, _NEVER, True, BLOCK)
    is_last = True
    if splits > 1:
        at = row * splits + split
        tl.store(values_ptr + 2 * at, best)
        tl.store(values_ptr + 2 * at + 1, top)
        tl.store(tokens_ptr + at, token)
        tl.debug_barrier()  # all of the program has stored before one thread says so
        is_last = tl.atomic_add(arrived_ptr + row, 1, sem="acq_rel") == splits - 1
    if is_last:
        if splits > 1:
            i = tl.arange(0, MAX_SPLITS)
            parts = row * splits + i
            values = tl.load(values_ptr + 2 * parts, mask=i < splits, other=_NEVER, cache_modifier=".cg")
            tops = tl.load(values_ptr + 2 * parts + 1, mask=i < splits, other=_NEVER, cache_modifier=".cg")
            tokens = tl.load(tokens_ptr + parts, mask=i < splits, other=vocab, cache_modifier=".cg")
            top = tl.max(tops, 0)
            token = tl.min(tl.where(values == tl.max(values, 0), tokens, vocab), 0)
        if (temperature > 0) & (top > _NEVER) & (top < _ALWAYS):
            top_k = tl.load(top_k_ptr + row)
            top_k = tl.where(top_k > 0, tl.minimum(top_k, vocab), vocab)
            token = _allowed(
                logits_ptr, vocab, temperature, key_a, key_b, token, top,
                top_k, tl.load(top_p_ptr + row), tl.load(min_p_ptr + row), BLOCK,
            )  # fmt: skip
        tl.store(ids_ptr + row, token.to(tl.int64))


@triton.jit
def _draw(
    logits_ptr: tl.tensor,
    start: tl.tensor,
    end: tl.tensor,
    temperature: tl.tensor,
    key_a: tl.tensor,
    key_b: tl.tensor,
    above: tl.tensor,
    floor: tl.tensor,
    IS_FIRST: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Of the tokens start to end with a logit > ``above`` and >= ``floor``, return (the best noisy logit, its token).

    And the highest logit of all. The logits are divided by the temperature; where that is 0, nothing is added.
    """
    lane = tl.arange(0, BLOCK)
    best = tl.full([BLOCK], _NEVER, tl.float32)
    top = tl.full([BLOCK], _NEVER, tl.float32)
    token = start + lane
    block = start
    ahead = _loaded(logits_ptr, token, end)
    while block < end:
        i = block + lane
        x = _scaled(ahead, temperature)
        block += BLOCK
        ahead = _loaded(logits_ptr, block + lane, end)  # under way while this block is worked on
        top = tl.maximum(top, x)
        is_open = (x > above) & (x >= floor)
        is_noisy = temperature > 0
        if not IS_FIRST:  # making noise is most of the work, and a later draw is from few tokens
            is_noisy &= tl.max(is_open.to(tl.int32), 0) > 0
        if is_noisy:
            x += gumbel_noise(i, key_a, key_b)
        is_better = is_open & (x > best)
        best = tl.where(is_better, x, best)
        token = tl.where(is_better, i, token)
    value = tl.max(best, 0)
    return value, tl.min(tl.where(best == value, token, end - 1), 0), tl.max(top, 0)


@triton.jit
def _allowed(
    logits_ptr: tl.tensor,
    vocab: tl.tensor,
    temperature: tl.tensor,
    key_a: tl.tensor,
    key_b: tl.tensor,
    token: tl.tensor,
    top: tl.tensor,
    top_k: tl.tensor,
    top_p: tl.tensor,
    min_p: tl.tensor,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """Return ``token``, or if it is not allowed, the one that is drawn next and is. ``top`` is the highest logit.

    A token with the highest logit is always allowed, so the loop ends.
    """
    floor = tl.where(min_p > 0, top + tl.minimum(tl.log(tl.maximum(min_p, 1e-30)), 0.0), _NEVER)
    is_found = (top_k == vocab) & (top_p >= 1) & (min_p <= 0)
    while not is_found:
        x = _scaled(_loaded(logits_ptr, token, vocab), temperature)
        count, mass, total, _, _ = _above(logits_ptr, vocab, temperature, top, x, BLOCK)
        is_found = (count < top_k) & (x >= floor)
        if is_found & (top_p < 1):
            if top_k < vocab:
                total = _mass_of_best(logits_ptr, vocab, temperature, top, x, top_k, top_p, mass, total, BLOCK)
            is_found = mass < top_p * total
        is_found = is_found | (count == 0)
        if not is_found:
            _, token, _ = _draw(logits_ptr, 0, vocab, temperature, key_a, key_b, x, floor, False, BLOCK)
    return token


@triton.jit
def _mass_of_best(
    logits_ptr: tl.tensor,
    vocab: tl.tensor,
    temperature: tl.tensor,
    top: tl.tensor,
    x: tl.tensor,
    top_k: tl.tensor,
    top_p: tl.tensor,
    mass: tl.tensor,
    total: tl.tensor,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """Return the mass of the ``top_k`` best tokens, as well as it must be known to compare ``mass`` with a share of it.

    ``x`` is the logit of one of them, ``mass`` that of the tokens above x, ``total`` that of all. Bisects for the
    logit of the last of the best, between ``low`` and ``high``, which move from the logit of one token to that of
    another; what is sought is at most the mass from low on, and at least that above high.
    """
    low = top - _NEGLIGIBLE
    high = x
    least = mass + tl.exp(x - top)
    while (low < high) & (mass >= top_p * least) & (mass < top_p * total):
        middle = low + (high - low) * 0.5
        middle = tl.where(middle < high, middle, low)
        count, above, _, next_above, next_below = _above(logits_ptr, vocab, temperature, top, middle, BLOCK)
        if count < top_k:
            high = next_below
            least = tl.maximum(least, above)
        else:
            low = next_above
            total = above
    return total


@triton.jit
def _above(
    logits_ptr: tl.tensor,
    vocab: tl.tensor,
    temperature: tl.tensor,
    top: tl.tensor,
    x: tl.tensor,
    BLOCK: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Return of the tokens with a logit above ``x``: how many, and their mass; the mass of all; and x's neighbours.

    A token's mass is its probability over that of the best. The neighbours are the lowest logit above x, and the
    highest that is not.
    """
    lane = tl.arange(0, BLOCK)
    count = tl.zeros([BLOCK], tl.int32)
    mass = tl.zeros([BLOCK], tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    next_above = tl.full([BLOCK], _ALWAYS, tl.float32)
    next_below = tl.full([BLOCK], _NEVER, tl.float32)
    block = 0
    ahead = _loaded(logits_ptr, lane, vocab)
    while block < vocab:
        value = _scaled(ahead, temperature)
        block += BLOCK
        ahead = _loaded(logits_ptr, block + lane, vocab)
        is_above = value > x
        weight = tl.exp(value - top)
        count += is_above.to(tl.int32)
        mass += tl.where(is_above, weight, 0.0)
        total += weight
        next_above = tl.minimum(next_above, tl.where(is_above, value, _ALWAYS))
        next_below = tl.maximum(next_below, tl.where(is_above, _NEVER, value))
    return tl.sum(count, 0), tl.sum(mass, 0), tl.sum(total, 0), tl.min(next_above, 0), tl.max(next_below, 0)


@triton.jit
def _loaded(logits_ptr: tl.tensor, token: tl.tensor, end: tl.tensor) -> tl.tensor:
    """Load logits, -inf from ``end`` on."""
    return tl.load(logits_ptr + token, mask=token < end, other=_NEVER)


@triton.jit
def _scaled(x: tl.tensor, temperature: tl.tensor) -> tl.tensor:
    """Return logits over temperature, divided as torch divides, to the last bit; -inf for NaN, which spoils no sum."""
    x = tl.div_rn(x, tl.where(temperature > 0, temperature, 1.0))
    return tl.where(x == x, x, _NEVER)
