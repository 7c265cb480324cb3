"""A linear layer whose weight is laid out once for the CPU's matrix kernels.

The packing is oneDNN's, reached through two private operators of torch (as its own compiler does). Where they are
missing, or refuse a dtype on this CPU, the weight stays as it is and ``torch.nn.functional.linear`` computes.
"""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F
from torch import Tensor

from parrot_kernels.errors import KernelInputError

logger = logging.getLogger(__name__)


class PackedLinear:
    """``x @ weight.T + bias`` for a fixed weight [out_features, in_features]; ``packed`` says which of the two ways."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, pack: bool = True) -> None:
        if weight.ndim != 2 or (bias is not None and bias.shape != weight.shape[:1]):
            raise KernelInputError(f"a weight {tuple(weight.shape)} with a bias of another shape, or not a matrix")
        self.out_features, self.in_features = weight.shape
        self.bias = bias
        packed = _pack(weight) if pack and weight.device.type == "cpu" else None
        self.packed = packed is not None
        self._weight = weight if packed is None else packed

    @property
    def nbytes(self) -> int:
        """Bytes that weight and bias take."""
        biases = self.bias.nbytes if self.bias is not None else 0
        return self.out_features * self.in_features * self._weight.dtype.itemsize + biases

    def __call__(self, x: Tensor) -> Tensor:
        """Return [..., out_features] for ``x`` [..., in_features]."""
        if self.packed:
            if x.shape[-1] != self.in_features or x.dtype != self._weight.dtype:
                raise KernelInputError(
                    f"{x.dtype} {tuple(x.shape)} does not fit a weight of {self.in_features} columns"
                )
            out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self.bias, "none", [], "")
            return out
        return F.linear(x, self._weight, self.bias)


def _pack(weight: Tensor) -> Tensor | None:
    """Return ``weight`` in oneDNN's layout if this torch and this CPU compute with it, else None."""
    if weight.dtype not in (torch.float32, torch.bfloat16) or 0 in weight.shape:
        return None
    try:
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), None)
        probe = torch.ones(1, weight.shape[1], dtype=weight.dtype)
        torch.ops.mkldnn._linear_pointwise(probe, packed, None, "none", [], "")
    except (AttributeError, RuntimeError, TypeError) as error:  # the operators are private: gone, changed or refused
        logger.info("linear layers are not packed: %s", error)
        return None
    return packed
