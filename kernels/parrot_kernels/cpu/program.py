"""A captured step: operations over static buffers that C++ replays in one parallel region, see program.h."""

from __future__ import annotations

import ctypes
import enum
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from parrot_kernels.attention_plan import AttentionPlan
from parrot_kernels.checks import check_plan
from parrot_kernels.cpu.library import Library, Operation
from parrot_kernels.cpu.plan import NativePlan
from parrot_kernels.errors import KernelInputError


class Rows(enum.IntEnum):
    """What the rows of an operation are (``Rows`` of program.h)."""

    TOKENS = 0
    """The step's tokens."""
    PICKED = 1
    """The rows picked of them, to compute logits of."""


class Kind(enum.IntEnum):
    """Kinds of operations, whose times a program sums."""

    NORM = 0
    ROPE = 1
    ATTENTION = 2
    SILU_MUL = 3
    LINEAR = 4
    GATHER = 5


class Program:
    """Operations recorded by ``Recorder``; not for several threads at once.

    ``max_tokens`` and ``max_picked`` are the rows that the buffers hold. ``num_blocks`` is the size of the smallest
    cache. ``out`` is the buffer of what the step returns, whose rows are ``out_rows``, in ``memory``, which all buffers
    lie in; ``owned`` is everything else that the operations point to.
    """

    def __init__(
        self,
        library: Library,
        max_tokens: int,
        max_picked: int,
        num_blocks: int,
        out_rows: Rows,
        out: Tensor,
        memory: Tensor,
        owned: Sequence[object],
    ) -> None:
        self.max_tokens = max_tokens
        self.max_picked = max_picked
        self._num_blocks = num_blocks
        self._out_rows = out_rows
        self._out = out
        self._memory = memory
        self._owned = owned
        self._library = library
        self._program = library.program_new()
        weakref.finalize(self, library.program_free, self._program)

    @property
    def nbytes(self) -> int:
        """Bytes of its buffers, taken as runs need them."""
        return self._memory.nbytes

    def append(self, name: str, operation: Operation, rows: Rows, kind: Kind, *, barrier: bool) -> None:
        """Add an operation by the library's name for it; with ``barrier`` the threads meet after it."""
        self._library.record[name](self._program, ctypes.addressof(operation), rows, kind, barrier)

    def run(self, num_tokens: int, num_picked: int, plan: AttentionPlan) -> Tensor:
        """Compute the step from what stands in its input buffers; return the rows of the result.

        It lies in the program's buffers: the next run overwrites it. Raises ``KernelInputError`` for row counts
        beyond the buffers, a plan for others, and indices outside what they index (then nothing was computed).
        """
        if not (1 <= num_tokens <= self.max_tokens and 0 <= num_picked <= self.max_picked):
            raise KernelInputError(
                f"{num_tokens} tokens and {num_picked} picked rows: captured for 1 to {self.max_tokens} and up to "
                f"{self.max_picked}"
            )
        check_plan(plan, num_tokens, self._num_blocks)
        native = NativePlan.of(self._library, plan).address
        if self._library.program_run(self._program, num_tokens, num_picked, native, torch.get_num_threads()):
            raise KernelInputError("a slot outside the cache, or an index outside its table")
        return self._out[: num_tokens if self._out_rows is Rows.TOKENS else num_picked]

    @property
    def seconds(self) -> dict[str, float]:
        """Time by kind of operation, summed over all runs, waiting for the other threads included."""
        seconds = self._library.program_seconds(self._program)
        return {kind.name.lower(): seconds[kind] for kind in Kind}
