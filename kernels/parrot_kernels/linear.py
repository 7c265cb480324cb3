"""A linear layer whose weight a backend has laid out for its own product."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from parrot_kernels.errors import KernelInputError


@dataclasses.dataclass(frozen=True, eq=False)
class PackedLinear:
    """``x @ weight.T + bias`` for a fixed weight: made by a backend's ``pack_linear``, computed by its ``linear``."""

    out_features: int
    in_features: int
    dtype: torch.dtype
    """Of the weight, the bias and the input."""
    data: Tensor
    """The weight [out_features, in_features] as it was, or if ``packed`` the bytes of its panels."""
    bias: Tensor | None
    packed: bool

    @property
    def plain(self) -> Tensor:
        """The weight [out_features, in_features] as it was. Raises ``KernelInputError`` if there are only panels."""
        if self.packed:
            raise KernelInputError("this layer was packed by the compiled backend: torch cannot compute with it")
        return self.data

    @property
    def nbytes(self) -> int:
        """Bytes of weight and bias, padding included."""
        return self.data.nbytes + (self.bias.nbytes if self.bias is not None else 0)


def check_weight(weight: Tensor, bias: Tensor | None) -> None:
    """Raise ``KernelInputError`` unless ``weight`` is a matrix and ``bias`` fits it."""
    if weight.ndim != 2 or (bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != weight.dtype)):
        what = f"a bias {bias.dtype} {tuple(bias.shape)}" if bias is not None else "no bias"
        raise KernelInputError(f"a weight {weight.dtype} {tuple(weight.shape)} and {what} make no linear layer")


def check_input(x: Tensor, packed: PackedLinear, dtype: torch.dtype | None) -> torch.dtype:
    """Return the dtype of the result. Raises ``KernelInputError`` if ``x`` does not fit the layer."""
    if x.ndim == 0 or x.shape[-1] != packed.in_features or x.dtype != packed.dtype:
        raise KernelInputError(
            f"{x.dtype} {tuple(x.shape)} does not fit a {packed.dtype} weight of {packed.in_features} columns"
        )
    if dtype not in (None, x.dtype, torch.float32):
        raise KernelInputError(f"a linear layer of {x.dtype} gives {x.dtype} or torch.float32, not {dtype}")
    return dtype or x.dtype
