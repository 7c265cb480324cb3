"""Noise that turns an arg-max into a draw, made where it is used; see ``parrot_kernels.sampling`` for its twin."""

from __future__ import annotations

import triton
import triton.language as tl

_LOWEST_NOISE = tl.constexpr(-1e30)
"""Instead of -inf, so that the only token left is drawn whatever its noise."""


@triton.jit
def gumbel_noise(token: tl.tensor, key_a: tl.tensor, key_b: tl.tensor) -> tl.tensor:
    """Return Gumbel(0, 1) noise of the ids ``token``, which depends on them and the two halves of the key alone."""
    bits = _mix(_mix(token.to(tl.uint32) ^ key_a) ^ key_b)
    uniform = ((bits & 0x7FFFFFFF).to(tl.float32) + 0.5) * (2.0**-31)
    # -log(1 - uniform) to full precision (Goldberg 1991, theorem 4): the log and the quotient share their error.
    rest = 1.0 - uniform
    exact = tl.maximum(1.0 - rest, 1e-30)
    exponential = tl.where(rest == 1.0, uniform, -tl.log(tl.maximum(rest, 1e-30)) * (uniform / exact))
    # One in 2 ** 25 numbers rounds to 1.
    return tl.where(uniform < 1.0, -tl.log(exponential), _LOWEST_NOISE)


@triton.jit
def _mix(bits: tl.tensor) -> tl.tensor:
    """``lowbias32`` (C. Wellons, hash-prospector, 2018) of unsigned 32-bit numbers; products wrap."""
    bits ^= bits >> 16
    bits = tl.mul(bits, 0x7FEB352D, sanitize_overflow=False)
    bits ^= bits >> 15
    bits = tl.mul(bits, 0x846CA68B, sanitize_overflow=False)
    return bits ^ (bits >> 16)
