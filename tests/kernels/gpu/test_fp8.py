"""A cache of float8: the kernels, the twins, and every number of the format."""

from __future__ import annotations

import math

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from parrot_kernels import AttentionPlan, KernelInputError
from parrot_kernels.cpu.backend import CpuBackend
from parrot_kernels.fp8 import FP8, LARGEST, to_cache
from parrot_kernels.gpu.backend import GpuBackend
from parrot_kernels.gpu.interpreter import rounded
from parrot_kernels.torch_backend import TorchBackend

TWIN = TorchBackend()
SCALES = {"key_scale": 0.03, "value_scale": 0.004}


@triton.jit
def _rounded_kernel(source: tl.tensor, target: tl.tensor, size: tl.constexpr) -> None:
    i = tl.arange(0, size)
    tl.store(target + i, rounded(tl.load(source + i), target.dtype.element_ty))


def test_every_number_and_every_middle_between_two(device: torch.device) -> None:
    numbers = torch.arange(127, dtype=torch.uint8).view(FP8).float()  # from 0 to the largest
    between = (numbers[1:] + numbers[:-1]) / 2
    x = torch.cat([numbers, between, between.nextafter(torch.tensor(1e9)), between.nextafter(torch.tensor(0.0))])
    x = torch.cat([x, torch.tensor([1e-9, 449.0, 1e30, math.inf]), torch.zeros(1)])
    x = torch.cat([x, -x, torch.full((1024 - 2 * len(x),), math.nan)]).to(device)
    out = torch.zeros(1024, dtype=torch.uint8, device=device).view(FP8)
    _rounded_kernel[1,](x, out, size=1024)
    expected = x.clamp(-LARGEST, LARGEST).to(FP8)
    assert torch.equal(out.float().nan_to_num(nan=-1000.0), expected.float().nan_to_num(nan=-1000.0))
    assert torch.equal(out.float().signbit()[x == x], expected.float().signbit()[x == x])


def stored(
    kernels: TorchBackend, device: torch.device, dtype: torch.dtype, *, half: int = 32
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (the rotated query, keys, values) after five tokens were stored."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(5, heads, 64, generator=generator).mul(2).to(dtype).to(device) for heads in (4, 2, 2)
    )
    value[0, 0, :3] = 100.0  # beyond what the format holds
    angles = torch.randn(5, half, generator=generator).to(device)
    slots = torch.tensor([3, -1, 17, 40, 0], device=device)
    caches = [torch.zeros(3, 2, 16, 64, dtype=torch.uint8, device=device).view(FP8) for _ in range(2)]
    out = kernels.rope_and_store(query, key, value, angles.cos(), angles.sin(), slots, *caches, **SCALES)
    return out, *caches


@pytest.mark.parametrize("half", [32, 8, 0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_what_is_stored(device: torch.device, dtype: torch.dtype, half: int) -> None:
    out, keys, values = stored(GpuBackend(device), device, dtype, half=half)
    expected, twin_keys, twin_values = stored(TWIN, torch.device("cpu"), dtype, half=half)
    rounding = torch.finfo(dtype).eps + 8e-6
    torch.testing.assert_close(out.cpu(), expected, rtol=rounding, atol=8e-6)
    assert torch.equal(values.cpu().float(), twin_values.float())
    assert float(values.cpu().float().max()) == LARGEST
    # The rotation's last bit may decide between two neighbours of the format.
    torch.testing.assert_close(keys.cpu().float(), twin_keys.float(), rtol=1 / 8, atol=2**-9)
    assert float((keys.cpu().float() == twin_keys.float()).float().mean()) > 0.99


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ["torch", "cpu", "triton"])
def test_attention_over_what_was_stored(device: torch.device, dtype: torch.dtype, name: str) -> None:
    if name == "cpu":
        kernels, device = CpuBackend(), torch.device("cpu")
    else:
        kernels = TWIN if name == "torch" else GpuBackend(device)
    query, keys, values = stored(kernels, device, dtype)
    plan = AttentionPlan([1, 4], [20, 6], [[0, 1], [2]], device=device)
    out, lse = kernels.paged_attention(query, keys, values, plan, scale=0.125, **SCALES)
    wide_keys, wide_values = keys.float().cpu() * SCALES["key_scale"], values.float().cpu() * SCALES["value_scale"]
    exact = AttentionPlan([1, 4], [20, 6], [[0, 1], [2]])
    expected, expected_lse = TWIN.paged_attention(query.cpu().float(), wide_keys, wide_values, exact, scale=0.125)
    bound = 2 * torch.finfo(dtype).eps if dtype is torch.bfloat16 else 1e-5
    torch.testing.assert_close(out.float().cpu(), expected, rtol=bound, atol=bound)
    torch.testing.assert_close(lse.cpu(), expected_lse, rtol=bound, atol=bound)


def test_caches_that_differ_are_refused(device: torch.device) -> None:
    x, slots = torch.zeros(1, 2, 64, device=device), torch.zeros(1, dtype=torch.int64, device=device)
    angles = torch.zeros(1, 0, device=device)
    wide = torch.zeros(1, 2, 16, 64, device=device)
    with pytest.raises(KernelInputError, match="caches of"):
        GpuBackend(device).rope_and_store(x, x, x, angles, angles, slots, wide.to(FP8), wide)


def test_other_dtypes_are_only_cast() -> None:
    x = torch.tensor([1.0, 1000.0])
    assert torch.equal(to_cache(x, torch.bfloat16, 1.0), x.bfloat16())
    assert to_cache(x, FP8, 2.0).float().tolist() == [0.5, LARGEST]
