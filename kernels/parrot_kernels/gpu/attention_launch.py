"""How the attention kernel is launched: sizes that change its speed and not its result."""

from __future__ import annotations

import dataclasses

from parrot_kernels.gpu.sharing_cost import AttentionShape

WIDE_ROWS = (32, 64, 128)
"""Rows of wide tiles, of which a kernel is compiled with one."""


@dataclasses.dataclass(frozen=True, slots=True)
class AttentionLaunch:
    """``keys`` a step (a power of two, at least 16), and of the launch: programs a multiprocessor, warps a program,
    steps whose keys are fetched ahead."""

    keys: int
    num_warps: int
    num_stages: int
    programs_per_processor: int

    @classmethod
    def default(cls, shape: AttentionShape, wide: int) -> AttentionLaunch:
        """Return what fits the shared memory of any device from Ampere on with two programs, large tiles with one."""
        line = 2 * shape.head_dim * shape.key_bytes
        keys = max(16, min(128, 32768 // line))  # 32 KiB a step
        is_large = wide > 64
        return cls(keys=keys, num_warps=8 if is_large else 4, num_stages=2, programs_per_processor=1 if is_large else 2)


def wide_rows(shape: AttentionShape, packed_rows: int) -> int:
    """Return the rows of wide tiles for pieces of up to ``packed_rows`` (query row x head of a KV head)."""
    sizes = [shape.narrow, *(rows for rows in WIDE_ROWS if rows > shape.narrow)]
    return next((rows for rows in sizes if rows >= packed_rows), sizes[-1])
