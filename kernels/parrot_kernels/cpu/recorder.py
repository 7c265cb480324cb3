"""Writes down the operations of a step instead of computing them, and makes a ``Program`` of them.

The step runs once, as ordinary Python, on buffers of full size that nobody touches; its operations arrive here with
pointers, which are then moved to an arena. Slices and reshapes of results work, for they are pointers and strides; any
other computation of torch between the operations is refused, for the program would leave it out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from parrot_kernels.attention_plan import AttentionPlan
from parrot_kernels.cpu.arena import Arena, Buffer
from parrot_kernels.cpu.backend import CpuBackend
from parrot_kernels.cpu.library import POINTER, SUFFIXES, Attention, Operation
from parrot_kernels.cpu.program import Kind, Program, Rows
from parrot_kernels.errors import KernelCaptureError

if TYPE_CHECKING:
    from parrot_kernels.backend import Step

_KINDS = {
    "rms_norm": Kind.NORM, "rope": Kind.ROPE, "attention": Kind.ATTENTION, "silu_mul": Kind.SILU_MUL,
    "linear": Kind.LINEAR, "gather": Kind.GATHER, "gather_packed": Kind.GATHER,
}  # fmt: skip
_ROW_BY_ROW = frozenset({"rms_norm", "rope", "gather", "gather_packed"})
"""A thread has the same rows in all of these: between two of them that read only their own rows, none waits."""


@dataclasses.dataclass(slots=True)
class _Recorded:
    name: str
    kind: str
    operation: Operation
    rows: Rows
    is_local: bool
    """Row by row, of rows that the same thread made."""
    barrier: bool = False


class Recorder(CpuBackend):
    """A backend that computes nothing; ``tokens`` and ``picked`` are the step's inputs, by what their rows are.

    Between two barriers lies a *phase*: memory that is read in a phase is not written for another result in it.
    """

    def __init__(self, backend: CpuBackend, tokens: Sequence[Tensor], picked: Sequence[Tensor]) -> None:
        self.variant = backend.variant
        self.library = backend.library
        self._tokens, self._picked = tokens, picked
        self._capacity = {Rows.TOKENS: tokens[0].shape[0], Rows.PICKED: picked[0].shape[0]}
        self._inputs = {tensor.data_ptr(): rows for rows in Rows for tensor in (tokens, picked)[rows]}
        self._owned: list[object] = [*tokens, *picked]
        self._arena = Arena()
        self._recorded: list[_Recorded] = []
        self._phase = 0
        self._num_blocks = 0
        self._plan = AttentionPlan([], [], [], num_rows=self._capacity[Rows.TOKENS])

    def record(self, step: Step) -> Program:
        """Return what ``step`` computes as a program. Raises ``KernelCaptureError`` if one cannot be made of it."""
        with torch.inference_mode(), _OnlyViews():  # type: ignore[no-untyped-call]
            result = step(self, self._tokens, self._picked, self._plan)
        buffer = self._arena.find(result.data_ptr())
        if buffer is None or result.shape != buffer.tensor.shape or not result.is_contiguous():
            raise KernelCaptureError("what the step returns is not the result of an operation")
        buffer.touch(self._phase)
        memory = self._arena.place()
        out = memory[buffer.offset : buffer.offset + result.nbytes].view(result.dtype).view(result.shape)
        capacity = self._capacity[Rows.TOKENS], self._capacity[Rows.PICKED]
        program = Program(self.library, *capacity, self._num_blocks, buffer.rows, out, memory, self._owned)
        for each in self._recorded:
            for field, pointed in self._pointers(each.operation):
                to = memory.data_ptr() + pointed.offset + getattr(each.operation, field) - pointed.address
                setattr(each.operation, field, to)
            program.append(each.name, each.operation, each.rows, _KINDS[each.kind], barrier=each.barrier)
        return program

    def _empty(self, rows_like: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        rows = self._rows_of(rows_like)
        return self._arena.new([self._capacity[rows], *shape], dtype, rows)

    def _compute(
        self,
        kind: str,
        dtype: torch.dtype | None,
        operation: Operation,
        by_row: Sequence[Tensor],
        whole: Sequence[object],
        suffix: str = "",
    ) -> None:
        name = kind + (SUFFIXES[dtype] if dtype is not None else "") + suffix
        rows = {self._rows_of(tensor) for tensor in by_row}
        if len(rows) != 1:
            raise KernelCaptureError(f"{name} of the step's tokens together with rows picked of them")
        reads_others = any(isinstance(each, Tensor) and self._arena.find(each.data_ptr()) for each in whole)
        recorded = _Recorded(name, kind, operation, rows.pop(), kind in _ROW_BY_ROW and not reads_others)
        if self._recorded:
            before = self._recorded[-1]
            before.barrier = not (before.is_local and recorded.is_local and before.rows == recorded.rows)
            self._phase += before.barrier
        for _, buffer in self._pointers(operation):
            buffer.touch(self._phase)
        self._recorded.append(recorded)
        self._owned += whole

    def _attend(
        self, operation: Attention, query: Tensor, key_cache: Tensor, value_cache: Tensor, plan: AttentionPlan
    ) -> None:
        if plan is not self._plan:
            raise KernelCaptureError("a step with another attention plan than the one it is given")
        self._num_blocks = min(key_cache.shape[0], self._num_blocks or key_cache.shape[0])
        if self._rows_of(query) is not Rows.TOKENS:
            raise KernelCaptureError("attention of picked rows")
        self._compute("attention", query.dtype, operation, [query], [key_cache, value_cache])

    def _rows_of(self, tensor: Tensor) -> Rows:
        buffer = self._arena.find(tensor.data_ptr())
        rows = buffer.rows if buffer is not None else self._inputs.get(tensor.data_ptr())
        if rows is None or tensor.shape[0] != self._capacity[rows]:
            raise KernelCaptureError(f"a tensor {tuple(tensor.shape)} that has no row for each token or picked row")
        return rows

    def _pointers(self, operation: Operation) -> Iterator[tuple[str, Buffer]]:
        """Yield the operation's pointers into buffers."""
        for name, type_, *_ in operation._fields_:
            address = getattr(operation, name)
            buffer = self._arena.find(address) if type_ is POINTER and address else None
            if buffer is not None:
                yield name, buffer


class _OnlyViews(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lets torch make views and empty tensors, and refuses whatever computes."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten.empty.memory_format:
            return func(*args, **(kwargs or {}))
        if func.is_view:
            result = func(*args, **(kwargs or {}))
            views = result if isinstance(result, list | tuple) else [result]
            if all(_storage(view) == _storage(args[0]) for view in views):  # some "views" copy if they must
                return result
        raise KernelCaptureError(f"the step calls {func}, which is no operation of the backend")


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
