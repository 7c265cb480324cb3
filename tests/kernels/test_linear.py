"""The packed linear layer and its fallback."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from parrot_kernels import KernelInputError, PackedLinear


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("rows", [(1,), (2, 5), (0,)])
def test_linear(pack: bool, with_bias: bool, dtype: torch.dtype, tolerance: float, rows: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(48, 33).to(dtype) / 6, torch.randn(*rows, 33).to(dtype)
    bias = torch.randn(48).to(dtype) if with_bias else None
    layer = PackedLinear(weight, bias, pack=pack)
    expected = F.linear(x.double(), weight.double(), bias.double() if bias is not None else None)
    torch.testing.assert_close(layer(x).double(), expected, rtol=tolerance, atol=tolerance)


def test_float32_is_packed_here_and_float64_is_not() -> None:
    assert PackedLinear(torch.randn(8, 8)).packed
    assert not PackedLinear(torch.randn(8, 8).double()).packed


def test_without_the_private_operators_the_weight_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> None:
        raise AttributeError("no such operator")

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", gone)
    weight, x = torch.randn(8, 5), torch.randn(2, 5)
    layer = PackedLinear(weight)
    assert not layer.packed
    assert torch.equal(layer(x), F.linear(x, weight))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(KernelInputError):
        PackedLinear(torch.randn(8, 5))(torch.randn(2, 4))
    with pytest.raises(KernelInputError):
        PackedLinear(torch.randn(8, 5))(torch.randn(2, 5).double())
    with pytest.raises(KernelInputError):
        PackedLinear(torch.randn(8, 5), torch.randn(5))
