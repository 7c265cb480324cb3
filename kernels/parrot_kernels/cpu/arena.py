"""Memory for the intermediate results of a captured step, of which few are alive at a time."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from parrot_kernels.cpu.program import Rows

ALIGNMENT = 64


@dataclasses.dataclass(slots=True)
class Buffer:
    """A result whose rows are ``rows``, in use from phase ``first`` to phase ``last`` (-1: not yet).

    While recording it is ``tensor``, memory of its own that nobody touches, so it costs addresses only; ``offset`` is
    its place in the arena.
    """

    tensor: Tensor
    rows: Rows
    first: int = -1
    last: int = -1
    offset: int = 0

    @property
    def address(self) -> int:
        """Where the tensor begins."""
        return self.tensor.data_ptr()

    def touch(self, phase: int) -> None:
        """Note a use."""
        self.first = phase if self.first < 0 else self.first
        self.last = phase


class Arena:
    """Hands out buffers while a step is recorded, then places them such that those in use at once do not overlap."""

    def __init__(self) -> None:
        self._buffers: list[Buffer] = []  # by first use
        self._by_address: list[Buffer] = []

    def new(self, shape: Sequence[int], dtype: torch.dtype, rows: Rows) -> Tensor:
        """Return a buffer's tensor."""
        tensor = torch.empty(*shape, dtype=dtype)
        buffer = Buffer(tensor, rows)
        self._buffers.append(buffer)
        bisect.insort(self._by_address, buffer, key=lambda each: each.address)
        return tensor

    def find(self, address: int) -> Buffer | None:
        """Return the buffer that ``address`` lies in, if any."""
        i = bisect.bisect_right(self._by_address, address, key=lambda each: each.address) - 1
        if i < 0 or address >= self._by_address[i].address + self._by_address[i].tensor.nbytes:
            return None
        return self._by_address[i]

    def place(self) -> Tensor:
        """Choose the offsets; return the memory.

        A buffer takes the smallest place that is free and large enough, so step after step and layer after layer the
        same few places are used, and stay in the CPU's caches.
        """
        places: list[tuple[int, int, int]] = []  # (bytes, offset, last phase of the buffer that has it)
        end = 0
        for buffer in self._buffers:
            free = [place for place in places if place[0] >= buffer.tensor.nbytes and place[2] < buffer.first]
            if free:
                places.remove(min(free))
                size, buffer.offset, _ = min(free)
            else:
                size, buffer.offset = -(-buffer.tensor.nbytes // ALIGNMENT) * ALIGNMENT, end
                end += size
            places.append((size, buffer.offset, buffer.last))
        memory = torch.zeros(end + ALIGNMENT, dtype=torch.uint8)
        start = -memory.data_ptr() % ALIGNMENT
        return memory[start : start + end]
