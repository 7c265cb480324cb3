"""How the attention kernel is launched: sizes that change its speed and not its result."""

from __future__ import annotations

import dataclasses

import torch

from parrot_kernels.gpu.launch import stored_launches
from parrot_kernels.gpu.sharing_cost import AttentionShape

WIDE_ROWS = (32, 64, 128)
"""Rows of wide tiles, of which a kernel is compiled with one."""


@dataclasses.dataclass(frozen=True, slots=True)
class AttentionLaunch:
    """``keys`` a step (a power of two from 16 to 256), and of the launch: programs a multiprocessor, warps a program,
    buffers that steps of keys pass through (2: they are fetched while nothing is computed)."""

    keys: int
    num_warps: int
    num_stages: int
    programs_per_processor: int

    @classmethod
    def for_device(cls, device: torch.device, shape: AttentionShape, wide: int) -> AttentionLaunch:
        """Return what was measured on a device of that name, else the default."""
        stored = stored_launches(device, "attention").get(problem_name(shape, wide))
        return cls(**stored) if stored is not None else cls.default(shape, wide)

    @classmethod
    def default(cls, shape: AttentionShape, wide: int) -> AttentionLaunch:
        """Return what fits the registers and the shared memory of a Hopper GPU (64 Ki and 227 KiB).

        That programs fit together matters, for one that has to wait for another to end begins its share late. Steps are
        of 32 KiB of keys and values, of which two are in flight. Tiles of one step of the tensor cores leave room for
        three programs, whose loads fill the memory's pipe; wide ones take the registers of two. An 8-bit cache has
        steps of as many keys as a 16-bit one, which are half as long, so that three are in flight; to widen them takes
        registers.
        """
        is_short = shape.key_bytes == 1
        keys = max(16, min(128, 32768 // (2 * shape.head_dim * max(2, shape.key_bytes))))
        if wide <= 32:
            programs = 3 if wide == 16 and not is_short else 2
            return cls(keys, num_warps=4, num_stages=3 + is_short, programs_per_processor=programs)
        if wide == 64:
            return cls(keys, num_warps=4, num_stages=2 + is_short, programs_per_processor=2)
        return cls(keys, num_warps=8, num_stages=3 + is_short, programs_per_processor=1)


def problem_name(shape: AttentionShape, wide: int) -> str:
    """Return the name in the stored launches: kernels are compiled for a head dimension, a dtype and a tile."""
    return f"{shape.head_dim}x{shape.key_bytes}x{wide}"


def wide_rows(shape: AttentionShape, packed_rows: int) -> int:
    """Return the rows of wide tiles for pieces of up to ``packed_rows`` (query row x head of a KV head)."""
    sizes = [shape.narrow, *(rows for rows in WIDE_ROWS if rows > shape.narrow)]
    return next((rows for rows in sizes if rows >= packed_rows), sizes[-1])
