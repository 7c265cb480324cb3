"""Memory of an attention launch for its time: the parts of rows that several programs compute."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from parrot_kernels.gpu.sharing_cost import AttentionShape


@dataclasses.dataclass(frozen=True, slots=True)
class Workspace:
    """``part_out`` [parts, heads, dim] and ``part_lse`` [parts, heads] hold parts; ``arrivals`` [rows, heads] counts
    who came to a row, and is zero between launches. Plans whose launches follow one another may have the same.
    """

    part_out: Tensor
    part_lse: Tensor
    arrivals: Tensor

    @classmethod
    def of(cls, shape: AttentionShape, *, rows: int, parts: int, device: torch.device) -> Workspace:
        """Return one for so many rows and parts."""
        return cls(
            torch.empty(parts, shape.heads, shape.head_dim, dtype=torch.float32, device=device),
            torch.empty(parts, shape.heads, dtype=torch.float32, device=device),
            torch.zeros(rows * shape.heads, dtype=torch.int32, device=device),
        )

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return self.part_out.nbytes + self.part_lse.nbytes + self.arrivals.nbytes
