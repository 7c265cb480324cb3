"""Whether Triton interprets the kernels on CPU tensors instead of compiling them, and what follows from that.

``TRITON_INTERPRET=1`` decides it, and must stand in the environment before anything imports triton (transformers does):
Triton's own helpers are decorated when it is imported, ours when this package is. The interpreter runs the programs of
a grid one after the other in numpy, where a bfloat16 number is an unsigned integer. Hence two rules for every kernel:
what is loaded is cast to float32 before any arithmetic, and a result is cast down by ``rounded``.
"""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED: bool = bool(triton.knobs.runtime.interpret)
"""True: kernels take CPU tensors, and nothing is compiled."""

WIDEN: bool = INTERPRETED
"""For a constexpr parameter: the operands of ``tl.dot`` are cast to float32, where natively they stay as they are."""

_BY_HAND = tl.constexpr(INTERPRETED)


@triton.jit
def rounded(x: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """Cast float32 ``x`` to ``dtype``, to nearest, ties to even; to float8 what is too large becomes the largest.

    The interpreter's own cast to bfloat16 truncates, and that to float8 loses the carry of what is rounded up.
    """
    if dtype == tl.float8e4nv:
        x = tl.where(x > 448.0, 448.0, tl.where(x < -448.0, -448.0, x))
        if _BY_HAND:
            bits = x.to(tl.uint32, bitcast=True)
            sign = (bits >> 24) & 0x80
            size = tl.abs(x)
            nearest = bits + 0x7FFFF + ((bits >> 20) & 1)
            normal = ((nearest >> 20) & 0x7FF) - (120 << 3)  # the exponent counts from -7, not from -127
            # Below the smallest normal number, 2^-6, steps are 2^-9: the last bit of 2^14 in float32.
            tiny = (size + 16384.0).to(tl.uint32, bitcast=True) & 0xFF
            code = tl.where(size < 0.015625, tiny, normal) | sign
            code = tl.where(x == x, code, code | 0x7F)
            return code.to(tl.uint8).to(tl.float8e4nv, bitcast=True)
    if _BY_HAND and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        nearest = bits + 0x7FFF + ((bits >> 16) & 1)
        # Adding could turn a NaN into an infinity.
        bits = tl.where(x == x, nearest, bits | 0x400000)
        return (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return x.to(dtype)
