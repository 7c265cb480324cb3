"""The Triton backend: what it takes and refuses, a whole step of a model by it, and how it is chosen."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from parrot_kernels import AttentionPlan, KernelBuildError, KernelInputError, backend_for
from parrot_kernels import backend as resolver
from parrot_kernels.gpu.backend import GpuBackend
from parrot_kernels.gpu.rms_norm import MAX_DIM
from parrot_kernels.torch_backend import TorchBackend
from tests.kernels.llama_step import LlamaStep, Shape

TWIN = TorchBackend()


@pytest.fixture(scope="session")
def kernels(device: torch.device) -> GpuBackend:
    return GpuBackend(device)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(resolver.ENVIRONMENT, raising=False)
    resolver._gpu_backend.cache_clear()
    resolver._compiled_or_torch.cache_clear()
    yield
    resolver._gpu_backend.cache_clear()
    resolver._compiled_or_torch.cache_clear()


def noise(*shape: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype).to(device)


def near(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=torch.finfo(expected.dtype).eps + 8e-6, atol=8e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(6,), (3, 6), (4, 3, 6), (2, 3, 4, 6), (1, MAX_DIM + 2)])
def test_any_number_of_dimensions(
    kernels: GpuBackend, device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    x = noise(*shape, device=device, dtype=dtype)
    weight = noise(shape[-1], device=device, dtype=dtype)
    columns = x.transpose(0, -1).contiguous().transpose(0, -1)  # the last dimension is not contiguous
    for each in (x, columns):
        near(kernels.rms_norm(each, weight, 1e-6), TWIN.rms_norm(x, weight, 1e-6))
        normed, total = kernels.add_rms_norm(each, x, weight, 1e-6)
        assert torch.equal(total, x + x)
        near(normed, TWIN.rms_norm(total, weight, 1e-6))
        near(kernels.silu_mul(each), TWIN.silu_mul(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rope_of_any_strides(kernels: GpuBackend, device: torch.device, dtype: torch.dtype) -> None:
    # [dim, heads, tokens] seen as [tokens, heads, dim]
    query, key, value = (noise(8, heads, 3, device=device, dtype=dtype).permute(2, 1, 0) for heads in (4, 2, 2))
    angles = noise(4, 3, device=device, dtype=dtype).T
    slots = torch.tensor([5, -1, 17, 0, 0, 0], device=device)[:3]
    ours, theirs = ([torch.zeros(2, 2, 16, 8, dtype=dtype, device=device) for _ in range(2)] for _ in range(2))
    near(
        kernels.rope_and_store(query, key, value, angles.cos(), angles.sin(), slots, *ours),
        TWIN.rope_and_store(query, key, value, angles.cos(), angles.sin(), slots, *theirs),
    )
    for our, their in zip(ours, theirs, strict=True):
        near(our, their)


def test_linear(kernels: GpuBackend, device: torch.device) -> None:
    weight, bias = (noise(*size, device=device, dtype=torch.bfloat16) for size in [(40, 24), (40,)])
    x = noise(2, 3, 24, device=device, dtype=torch.bfloat16)
    for packed in (kernels.pack_linear(weight, bias), kernels.pack_linear(weight)):
        near(kernels.linear(x, packed), TWIN.linear(x, packed))
        out = kernels.linear(x, packed, torch.float32)
        assert out.shape == (2, 3, 40)
        assert out.dtype == torch.float32
        torch.testing.assert_close(out, TWIN.linear(x, packed).float(), rtol=2**-7, atol=1e-2)
        if device.type == "cuda":  # not rounded to bfloat16 first
            exact = x.double() @ weight.double().T + (packed.bias.double() if packed.bias is not None else 0)
            torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-4)
        assert kernels.linear(x[:0], packed, torch.float32).shape == (0, 3, 40)


def test_what_does_not_fit_is_refused(kernels: GpuBackend, device: torch.device) -> None:
    x = noise(2, 4, 8, device=device)
    cache = torch.zeros(1, 4, 16, 8, device=device)
    slots = torch.zeros(2, dtype=torch.int64, device=device)
    angles = noise(2, 4, device=device)
    with pytest.raises(KernelInputError):
        kernels.rms_norm(x, x[0, 0, :7], 1e-5)
    with pytest.raises(KernelInputError):
        kernels.add_rms_norm(x, x[1:], x[0, 0], 1e-5)
    with pytest.raises(KernelInputError):
        kernels.silu_mul(x[..., :7])
    for arguments in [
        (x, x[:, :2], x, angles, angles, slots, cache, cache),
        (x, x, x, angles, angles, slots.int(), cache, cache),
        (x, x, x, angles.double(), angles.double(), slots, cache, cache),
        (x, x, x, angles, angles, slots, cache.bfloat16(), cache),
        (x, x, x, angles, angles, slots, cache.transpose(1, 2), cache),
    ]:
        with pytest.raises(KernelInputError):
            kernels.rope_and_store(*arguments)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_a_step_of_a_model(kernels: GpuBackend, device: torch.device, qk_norm: bool) -> None:
    shape = Shape(hidden=48, intermediate=72, layers=2, heads=4, kv_heads=2, dim=64, vocab=50, qk_norm=qk_norm)
    query_lens, contexts, tables = [1, 5, 1], [81, 9, 90], [[1, 2, 3, 4, 5, 6], [7], [1, 2, 3, 4, 5, 8]]
    logits = []
    with torch.device(device):
        for backend in (kernels, TWIN):
            model = LlamaStep(backend, shape, torch.float32, num_blocks=9, max_tokens=8, max_rows=4)
            plan = AttentionPlan(query_lens, contexts, tables, device=device)
            logits.append(model.eager(model.fill(query_lens, contexts, tables), 3, plan))
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-4)
    assert kernels.capture(model.step, *model.inputs()) is None


def test_the_environment_forces_it(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(resolver.ENVIRONMENT, "triton")
    assert backend_for(device).name == "triton"
    assert backend_for(device) is backend_for(device)
    monkeypatch.setenv(resolver.ENVIRONMENT, "torch")
    assert backend_for(device).name == "torch"


def test_a_gpu_has_it_by_default(device: torch.device) -> None:
    assert backend_for(device).name == ("triton" if device.type == "cuda" else "cpu")


def test_without_a_gpu_or_triton_it_is_torch_and_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with caplog.at_level(logging.WARNING):
        assert backend_for("cuda").name == backend_for("cuda").name == "torch"
    assert len(caplog.messages) == 1
    assert "torch sees no GPU" in caplog.messages[0]
    caplog.clear()
    monkeypatch.setitem(sys.modules, "parrot_kernels.gpu.backend", None)  # as where its import of triton fails
    with caplog.at_level(logging.WARNING):
        assert backend_for("cuda:1").name == "torch"
    assert "need triton" in caplog.text
    monkeypatch.setenv(resolver.ENVIRONMENT, "triton")
    with pytest.raises(KernelBuildError, match="triton"):
        backend_for("cuda:1")


def test_what_triton_says_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(x: Tensor) -> Tensor:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr("parrot_kernels.gpu.backend.silu_mul", fail)
    with pytest.raises(KernelBuildError, match=r"cpu \(TRITON_INTERPRET=1 .*\): Failed to find C compiler"):
        GpuBackend("cpu")
