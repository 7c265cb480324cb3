"""Norm, rotary with its store, and gate: against float64 and against the torch twin, in poisoned memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from parrot_kernels.gpu.launch import Launch
from parrot_kernels.gpu.rms_norm import add_rms_norm, rms_norm
from parrot_kernels.gpu.rope_and_store import rope_and_store
from parrot_kernels.gpu.silu_mul import silu_mul
from parrot_kernels.torch_backend import TorchBackend

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TWIN = TorchBackend()

pytestmark = pytest.mark.usefixtures("poison")


def close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """One rounding to the dtype, on top of float32 arithmetic of numbers around 1."""
    assert actual.dtype == dtype
    assert actual.is_contiguous()
    rounding = torch.finfo(dtype).eps / 2
    torch.testing.assert_close(actual.double(), expected.double(), rtol=rounding + 4e-6, atol=4e-6)


def near(actual: Tensor, twin: Tensor) -> None:
    """Two roundings of nearly the same number differ by one unit in the last place at most."""
    torch.testing.assert_close(actual, twin, rtol=torch.finfo(twin.dtype).eps + 8e-6, atol=8e-6)


def noise(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype).to(device)


def norm(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.double()
    return wide / torch.sqrt(wide.square().mean(-1, keepdim=True) + 1e-5) * weight.double()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 64), (5, 512), (33, 33), (70, 1), (2, 2049), (0, 16), (4, 3, 7), (9, 5, 64)])
def test_rms_norm(device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x, weight = noise(*shape, dtype=dtype, device=device), noise(shape[-1], dtype=dtype, device=device)
    out = rms_norm(x, weight, 1e-5)
    close(out, norm(x, weight), dtype)
    near(out, TWIN.rms_norm(x, weight, 1e-5))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm_of_the_heads_in_a_fused_projection(device: torch.device, dtype: torch.dtype) -> None:
    fused = noise(7, 8, 48, dtype=dtype, device=device)
    weight = noise(48, dtype=dtype, device=device)
    fused[:, :2] = fused[:, 5:] = float("nan")
    heads = fused[:, 2:5]
    close(rms_norm(heads, weight, 1e-5), norm(heads, weight), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 64), (5, 300), (3, 1025), (0, 16)])
def test_add_rms_norm(device: torch.device, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    rows, dim = shape
    x, residual = (noise(rows, dim + extra, dtype=dtype, device=device)[:, :dim] for extra in (3, 8))
    weight = noise(dim, dtype=dtype, device=device)
    normed, total = add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(total, x + residual)
    close(normed, norm(total, weight), dtype)
    near(normed, TWIN.add_rms_norm(x, residual, weight, 1e-5)[0])


def test_a_row_does_not_depend_on_how_many_there_are(device: torch.device) -> None:
    x, weight = noise(21, 96, dtype=torch.float32, device=device), noise(96, dtype=torch.float32, device=device)
    together = rms_norm(x, weight, 1e-5)
    for row in (0, 13, 20):
        assert torch.equal(rms_norm(x[row : row + 1], weight, 1e-5)[0], together[row])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 17), (2, 300), (40, 64), (0, 8)])
def test_silu_mul(device: torch.device, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    rows, width = shape
    gate_up = noise(rows, 2 * width + 5, dtype=dtype, device=device)[:, : 2 * width] * 4
    gate, up = gate_up.double().chunk(2, -1)
    out = silu_mul(gate_up, Launch(block=128, num_warps=2))
    close(out, gate * torch.sigmoid(gate) * up, dtype)
    near(out, TWIN.silu_mul(gate_up))


def test_silu_of_extremes(device: torch.device) -> None:
    gate = torch.tensor([float("nan"), float("inf"), 200.0, -200.0, 0.0], device=device)
    out = silu_mul(torch.cat([gate, torch.ones(5, device=device)])[None])[0]
    assert out[0].isnan()
    assert out[1:].tolist() == pytest.approx([float("inf"), 200.0, 0.0, 0.0], abs=1e-30)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = cos.shape[1]
    first, second, rest = x.double().split([half, half, x.shape[-1] - 2 * half], -1)
    c, s = cos.double()[:, None], sin.double()[:, None]
    return torch.cat([first * c - second * s, second * c + first * s, rest], -1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("dim", "half"), [(64, 32), (128, 64), (24, 5), (80, 16), (16, 0)])
@pytest.mark.parametrize("heads", [(4, 2), (9, 1)])
def test_rope_and_store(device: torch.device, dtype: torch.dtype, dim: int, half: int, heads: tuple[int, int]) -> None:
    tokens, num_blocks, value_dim = 5, 3, 24
    query_heads, kv_heads = heads
    fused = noise(tokens, query_heads * dim + kv_heads * (dim + value_dim), dtype=dtype, device=device)
    parts = fused.split([query_heads * dim, kv_heads * dim, kv_heads * value_dim], -1)
    query, key, value = (part.unflatten(-1, (count, -1)) for part, count in zip(parts, [*heads, kv_heads], strict=True))
    angle = noise(tokens, half + 3, dtype=torch.float32, device=device)
    cos, sin = angle.cos()[:, :half], angle.sin()[:, :half]  # as of a layer that rotates fewer dimensions
    slots = torch.tensor([47, 0, -1, 16, 16 * num_blocks], device=device)
    key_cache = torch.empty(num_blocks, kv_heads, 16, dim, dtype=dtype, device=device)
    value_cache = torch.empty(num_blocks, kv_heads, 16, value_dim, dtype=dtype, device=device)
    expected_keys, expected_values = key_cache.clone(), value_cache.clone()
    for token, slot in [(0, 47), (1, 0), (3, 16)]:
        expected_keys[slot // 16, :, slot % 16] = rotated(key, cos, sin)[token].to(dtype)
        expected_values[slot // 16, :, slot % 16] = value[token]
    out = rope_and_store(query, key, value, cos, sin, slots, key_cache, value_cache)
    close(out, rotated(query, cos, sin), dtype)
    twin_keys, twin_values = key_cache.clone(), value_cache.clone()
    near(out, TWIN.rope_and_store(query, key, value, cos, sin, slots.clamp(max=47), twin_keys, twin_values))
    # Nothing but the three slots was written.
    assert torch.equal(key_cache.isnan(), expected_keys.isnan())
    near(key_cache.nan_to_num(), expected_keys.nan_to_num())
    assert torch.equal(value_cache.nan_to_num(), expected_values.nan_to_num())
    assert torch.equal(value_cache.isnan(), expected_values.isnan())


def test_heads_in_tiles(device: torch.device) -> None:
    query, key = (noise(2, count, 32, dtype=torch.float32, device=device) for count in (5, 3))
    angle = noise(2, 16, dtype=torch.float32, device=device)
    caches = [torch.empty(1, 3, 16, 32, dtype=torch.float32, device=device) for _ in range(2)]
    slots = torch.tensor([3, 4], device=device)
    out = rope_and_store(query, key, key, angle.cos(), angle.sin(), slots, *caches, Launch(block=64, num_warps=1))
    close(out, rotated(query, angle.cos(), angle.sin()), torch.float32)
    close(caches[0][0, :, 3:5].transpose(0, 1).contiguous(), rotated(key, angle.cos(), angle.sin()), torch.float32)
    assert torch.equal(caches[1][0, :, 3:5].transpose(0, 1), key)
