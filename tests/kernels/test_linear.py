"""The linear layer: every variant of the compiled one and torch, against float64, and a row against itself."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from parrot_kernels import Backend, KernelInputError
from parrot_kernels.cpu.backend import CpuBackend
from parrot_kernels.cpu.variant import Variant, supported_variants
from parrot_kernels.cpu.weight_memory import CHUNK_BYTES, WeightMemory
from parrot_kernels.torch_backend import TorchBackend

VARIANTS = [variant.value for variant in supported_variants()]
DTYPES = [torch.float32, torch.bfloat16]


@functools.cache
def compiled(variant: str) -> CpuBackend:
    return CpuBackend(Variant(variant))


@pytest.fixture(params=[*VARIANTS, "torch"])
def backend(request: pytest.FixtureRequest) -> Backend:
    return TorchBackend() if request.param == "torch" else compiled(request.param)


def layer(
    out_features: int, in_features: int, dtype: torch.dtype, with_bias: bool = True
) -> tuple[Tensor, Tensor | None]:
    torch.manual_seed(out_features * 1000 + in_features)
    weight = torch.randn(out_features, in_features).to(dtype)
    return weight, torch.randn(out_features).to(dtype) if with_bias else None


def roundings_of(backend: Backend) -> int:
    return 2 if backend.name == "torch" else 1


def check(actual: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, roundings: int = 1) -> None:
    """Compare with float64: the sums lose what float32 loses, and a bfloat16 result its own rounding once.

    Torch may round the product and again what it adds the bias to: ``roundings`` is then 2.
    """
    expected = F.linear(x.double(), weight.double(), bias.double() if bias is not None else None)
    magnitude = F.linear(x.double().abs(), weight.double().abs(), bias.double().abs() if bias is not None else None)
    # A chain of n additions errs by at most n eps of the sum of magnitudes (Higham, Accuracy and Stability, 3.1).
    bound = (weight.shape[1] + 2) * torch.finfo(torch.float32).eps * magnitude
    if actual.dtype == torch.bfloat16:
        largest = expected.abs() + (bias.double().abs() if bias is not None and roundings == 2 else 0.0) + bound
        bound += roundings * torch.finfo(torch.bfloat16).eps / 2 * largest
    assert actual.shape == expected.shape
    assert bool(((actual.double() - expected).abs() <= bound).all())


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(48, 33), (1, 1), (16, 64), (33, 7), (257, 130), (64, 515)])
def test_odd_shapes(backend: Backend, shape: tuple[int, int], dtype: torch.dtype, with_bias: bool) -> None:
    weight, bias = layer(*shape, dtype, with_bias)
    packed = backend.pack_linear(weight, bias)
    for rows in (*range(1, 15), 25, 67):
        x = torch.randn(rows, shape[1]).to(dtype)
        out = backend.linear(x, packed)
        assert out.dtype == dtype
        check(out, x, weight, bias, roundings_of(backend))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [2, 130])
def test_large_layers(variant: str, dtype: torch.dtype, rows: int) -> None:
    weight, bias = layer(1409, 4098, dtype)
    x = torch.randn(rows, 4098).to(dtype)
    check(compiled(variant).linear(x, compiled(variant).pack_linear(weight, bias)), x, weight, bias)


@settings(max_examples=25, deadline=None)
@given(out_features=st.integers(1, 150), in_features=st.integers(1, 150), rows=st.integers(0, 40))
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_shape(variant: str, dtype: torch.dtype, out_features: int, in_features: int, rows: int) -> None:
    weight, bias = layer(out_features, in_features, dtype)
    x = torch.randn(rows, in_features).to(dtype)
    kernels = compiled(variant)
    check(kernels.linear(x, kernels.pack_linear(weight, bias)), x, weight, bias)


@pytest.mark.parametrize("variant", VARIANTS)
def test_float32_results_of_bfloat16_are_not_rounded(variant: str) -> None:
    weight, bias = layer(70, 200, torch.bfloat16)
    kernels, x = compiled(variant), torch.randn(9, 200).bfloat16()
    packed = kernels.pack_linear(weight, bias)
    out = kernels.linear(x, packed, dtype=torch.float32)
    assert out.dtype == torch.float32
    check(out, x, weight, bias)
    assert torch.equal(out.bfloat16(), kernels.linear(x, packed))
    twin = TorchBackend()
    assert twin.linear(x, twin.pack_linear(weight, bias), dtype=torch.float32).dtype == torch.float32


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("in_features", [512, 77, 4096])
def test_a_row_does_not_depend_on_its_neighbours_or_on_threads(
    variant: str, dtype: torch.dtype, in_features: int
) -> None:
    kernels = compiled(variant)
    weight, bias = layer(200, in_features, dtype)
    packed, x = kernels.pack_linear(weight, bias), torch.randn(300, in_features).to(dtype)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        together = kernels.linear(x, packed)
        for threads in (2, 3, 16):
            torch.set_num_threads(threads)
            assert torch.equal(kernels.linear(x, packed), together)
    finally:
        torch.set_num_threads(before)
    for rows in (*range(1, 14), 32, 64, 129):
        for first in (0, 5, 300 - rows):
            assert torch.equal(kernels.linear(x[first : first + rows], packed), together[first : first + rows])


def test_strides_and_dimensions(backend: Backend) -> None:
    roundings = roundings_of(backend)
    weight, bias = layer(50, 30, torch.bfloat16)
    wide = torch.randn(4, 5, 61).bfloat16()
    x = wide[..., 1:31]
    transposed = weight.t().contiguous().t()
    sliced = torch.cat([weight, weight], 1)[:, :30]
    for given_weight in (weight, transposed, sliced):
        packed = backend.pack_linear(given_weight, bias)
        check(backend.linear(x, packed), x, weight, bias, roundings)
        check(backend.linear(x[0], packed), x[0], weight, bias, roundings)
        check(backend.linear(x[0, 0], packed), x[0, 0], weight, bias, roundings)
        check(backend.linear(x[:, 0].t().contiguous().t(), packed), x[:, 0], weight, bias, roundings)
    assert backend.linear(x[:0], packed).shape == (0, 5, 50)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values_stay_in_their_rows_and_columns(variant: str, dtype: torch.dtype) -> None:
    kernels = compiled(variant)
    weight, x = torch.ones(40, 33).to(dtype), torch.ones(3, 33).to(dtype)
    weight[7, 32], x[1, 32] = float("inf"), float("nan")
    out = kernels.linear(x, kernels.pack_linear(weight))
    assert out[1].isnan().all()
    assert out[0, 7] == out[2, 7] == float("inf")
    assert out[0].isfinite().sum() == out[2].isfinite().sum() == 39


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16])
@pytest.mark.parametrize("shape", [(48, 33), (1, 1), (16, 64), (33, 7), (257, 130), (64, 515)])
def test_rows_of_a_packed_weight_are_those_that_were_packed(
    backend: Backend, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    weight, bias = layer(*shape, dtype)
    packed = backend.pack_linear(weight, bias)
    everything = torch.arange(shape[0])
    assert torch.equal(backend.gather(packed, everything), weight)
    index = torch.randint(0, shape[0], (300,))
    for chosen in (index, index[::3], everything.flip(0), index[:1], index[:0]):
        out = backend.gather(packed, chosen)
        assert torch.equal(out, weight[chosen])
        assert out.is_contiguous()


@settings(max_examples=25, deadline=None)
@given(out_features=st.integers(1, 150), in_features=st.integers(1, 150), rows=st.integers(0, 40))
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_any_shape(variant: str, dtype: torch.dtype, out_features: int, in_features: int, rows: int) -> None:
    weight, _ = layer(out_features, in_features, dtype)
    index = torch.randint(0, out_features, (rows,))
    kernels = compiled(variant)
    assert torch.equal(kernels.gather(kernels.pack_linear(weight), index), weight[index])


@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_that_a_packed_weight_does_not_have_are_refused(variant: str) -> None:
    kernels = compiled(variant)
    packed = kernels.pack_linear(torch.randn(33, 7))  # whose last panel is padded
    for outside in (-1, 33, 40):
        with pytest.raises(KernelInputError, match="outside the weight"):
            kernels.gather(packed, torch.tensor([0, outside]))
    for index in (torch.zeros(1, dtype=torch.int32), torch.zeros(1, 1, dtype=torch.int64)):
        with pytest.raises(KernelInputError, match="want an int64 index"):
            kernels.gather(packed, index)


def test_other_dtypes_go_to_torch(backend: Backend) -> None:
    for dtype in (torch.float16, torch.float64):
        weight, bias = layer(20, 10, dtype)
        packed, x = backend.pack_linear(weight, bias), torch.randn(3, 10).to(dtype)
        assert not packed.packed
        assert torch.equal(backend.linear(x, packed), F.linear(x, weight, bias))


def test_bytes_held() -> None:
    weight, bias = layer(512, 256, torch.bfloat16)
    for kernels in (compiled(VARIANTS[0]), TorchBackend()):
        assert kernels.pack_linear(weight).nbytes == weight.nbytes
        assert kernels.pack_linear(weight, bias).nbytes == weight.nbytes + 1024
    assert compiled(VARIANTS[0]).pack_linear(*layer(33, 7, torch.float32)).nbytes >= 34 * 7 * 4


def test_the_weight_may_be_freed_after_packing() -> None:
    kernels = compiled(VARIANTS[0])
    weight, bias = layer(64, 32, torch.float32)
    assert bias is not None
    packed, x = kernels.pack_linear(weight, bias), torch.randn(2, 32)
    expected = kernels.linear(x, packed)
    weight.zero_()
    bias.zero_()
    assert torch.equal(kernels.linear(x, packed), expected)


def test_layers_share_chunks_of_memory() -> None:
    memory = WeightMemory()
    first, second, large, third = (memory.take(size) for size in (100, 1, CHUNK_BYTES + 1, 64))
    assert [tensor.numel() for tensor in (first, second, large, third)] == [100, 1, CHUNK_BYTES + 1, 64]
    assert all(tensor.data_ptr() % 64 == 0 for tensor in (first, second, large, third))
    assert second.data_ptr() - first.data_ptr() == 128
    first.fill_(1)
    assert not second.any()
    assert not third.any()


def test_what_does_not_fit_is_refused(backend: Backend) -> None:
    weight, bias = layer(8, 5, torch.float32)
    packed = backend.pack_linear(weight, bias)
    for x in (torch.randn(2, 4), torch.randn(2, 5).double(), torch.tensor(1.0)):
        with pytest.raises(KernelInputError, match="does not fit"):
            backend.linear(x, packed)
    with pytest.raises(KernelInputError, match="gives"):
        backend.linear(torch.randn(2, 5), packed, dtype=torch.bfloat16)
    for bad in (torch.randn(5), torch.randn(8).double()):
        with pytest.raises(KernelInputError, match="make no linear layer"):
            backend.pack_linear(weight, bad)
    with pytest.raises(KernelInputError, match="make no linear layer"):
        backend.pack_linear(torch.randn(8))


def test_torch_refuses_what_the_compiled_backend_packed() -> None:
    packed = compiled(VARIANTS[0]).pack_linear(torch.randn(8, 5))
    with pytest.raises(KernelInputError, match="packed by the compiled backend"):
        TorchBackend().linear(torch.randn(1, 5), packed)
    with pytest.raises(KernelInputError, match="packed by the compiled backend"):
        TorchBackend().gather(packed, torch.tensor([0]))
