"""Random numbers that depend on (seed, output position, token id) alone: counter-based, the same on every device."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

_MULTIPLIER_A = 0x7FEB352D
_MULTIPLIER_B = 0x846CA68B - (1 << 32)
"""Constants of ``lowbias32`` (C. Wellons, hash-prospector, 2018), as signed 32-bit numbers."""


def gumbel_noise(keys: list[tuple[int, int]], vocab_size: int, device: torch.device) -> Tensor:
    """Return Gumbel(0, 1) noise [len(keys), vocab_size] in float32, one row for each (seed, position).

    The arg-max of logits + noise is a draw from softmax(logits) (Gumbel 1954), and a small change of the logits changes
    it only if the two best are nearly tied.
    """
    key = torch.tensor([noise_key(*each) for each in keys], dtype=torch.int32, device=device)
    ids = torch.arange(vocab_size, dtype=torch.int32, device=device)
    bits = _mix(_mix(ids.expand(len(keys), -1) ^ key[:, :1]) ^ key[:, 1:])
    # Small numbers decide (they give the largest noise), and floats are dense there. One in 2 ** 25 rounds to 1, whose
    # noise of -inf only keeps a token from being drawn this once.
    uniform = (bits & 0x7FFFFFFF).to(torch.float32).add_(0.5).mul_(2.0**-31)
    return uniform.neg_().log1p_().neg_().log_().neg_()


def noise_key(seed: int, position: int) -> tuple[int, int]:
    """Return the two signed 32-bit numbers that the noise is made of."""
    digest = hashlib.blake2b(
        seed.to_bytes(8, "little") + position.to_bytes(8, "little"), digest_size=8, person=b"sampling"
    ).digest()
    return int.from_bytes(digest[:4], "little", signed=True), int.from_bytes(digest[4:], "little", signed=True)


def _mix(bits: Tensor) -> Tensor:
    """``lowbias32``: a bijection of 32-bit numbers. Products wrap; a right shift keeps the sign, hence the masks."""
    bits = bits ^ ((bits >> 16) & 0xFFFF)
    bits = bits * _MULTIPLIER_A
    bits ^= (bits >> 15) & 0x1FFFF
    bits *= _MULTIPLIER_B
    bits ^= (bits >> 16) & 0xFFFF
    return bits
