"""Drawing a token from each row of logits, in torch: the twin of ``parrot_kernels.gpu.sampling``."""

from __future__ import annotations

import torch
from torch import Tensor

NEVER = float("-inf")
_MULTIPLIER_A = 0x7FEB352D
_MULTIPLIER_B = 0x846CA68B - (1 << 32)
"""Constants of ``lowbias32`` (C. Wellons, hash-prospector, 2018), as signed 32-bit numbers."""


def sample(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, keys: Tensor) -> Tensor:
    """Return a token id for each row; see ``parrot_kernels.backend.Backend`` for the contract.

    A row of temperature 0 costs its arg-max. The host looks at the parameters: it waits for a GPU, where they lie on
    one.
    """
    temperatures = temperature.tolist()
    if all(temperatures):
        return _draw(logits, temperature, top_k, top_p, min_p, keys)
    ids = logits.argmax(-1)
    if any(temperatures):
        rows = torch.tensor([row for row, value in enumerate(temperatures) if value], device=logits.device)
        ids[rows] = _draw(logits[rows], temperature[rows], top_k[rows], top_p[rows], min_p[rows], keys[rows])
    return ids


def _draw(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, keys: Tensor) -> Tensor:
    return warp(logits, temperature, top_k, top_p, min_p).add_(gumbel_noise(keys, logits.shape[1])).argmax(-1)


def warp(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """Return the rows over their temperature, with -inf where a token may not be drawn."""
    vocab_size = logits.shape[1]
    logits = logits / temperature[:, None]
    counts = top_k.tolist()
    if any(counts) or any(share < 1 for share in top_p.tolist()):
        counts = [min(count, vocab_size) or vocab_size for count in counts]
        logits = _top_k_top_p(logits, torch.tensor(counts, device=logits.device)[:, None], top_p[:, None])
    if any(min_p.tolist()):
        # min_p times the best token's probability; the normalisation cancels.
        floor = logits.amax(-1, keepdim=True) + min_p[:, None].log()
        logits = logits.masked_fill(logits < floor, NEVER)
    return logits


def _top_k_top_p(logits: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Keep the ``top_k`` best, then the fewest of these that hold ``top_p`` of their probability; ties at k stay."""
    ordered, index = logits.sort(-1, descending=True)
    kth = ordered.gather(-1, top_k - 1)
    ordered = ordered.masked_fill(ordered < kth, NEVER)
    probabilities = ordered.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    dropped = before >= top_p
    dropped[:, 0] = False
    # With top_p = 1 nothing is dropped, whatever the sum's rounding says.
    dropped &= top_p < 1
    ordered = ordered.masked_fill(dropped, NEVER)
    return torch.empty_like(logits).scatter_(-1, index, ordered)


def gumbel_noise(keys: Tensor, vocab_size: int) -> Tensor:
    """Return Gumbel(0, 1) noise [rows, vocab_size] in float32 that depends on ``keys`` [rows, 2] (int32) and the token.

    It is counter-based: the same on every device. The arg-max of logits + noise is a draw from softmax(logits) (Gumbel
    1954), and a small change of the logits changes it only if the two best are nearly tied.
    """
    ids = torch.arange(vocab_size, dtype=torch.int32, device=keys.device)
    bits = _mix(_mix(ids.expand(len(keys), -1) ^ keys[:, :1]) ^ keys[:, 1:])
    # Small numbers decide (they give the largest noise), and floats are dense there. One in 2 ** 25 rounds to 1, whose
    # noise of -inf only keeps a token from being drawn this once.
    uniform = (bits & 0x7FFFFFFF).to(torch.float32).add_(0.5).mul_(2.0**-31)
    return uniform.neg_().log1p_().neg_().log_().neg_()


def _mix(bits: Tensor) -> Tensor:
    """``lowbias32``: a bijection of 32-bit numbers. Products wrap; a right shift keeps the sign, hence the masks."""
    bits = bits ^ ((bits >> 16) & 0xFFFF)
    bits = bits * _MULTIPLIER_A
    bits ^= (bits >> 15) & 0x1FFFF
    bits *= _MULTIPLIER_B
    bits ^= (bits >> 16) & 0xFFFF
    return bits
