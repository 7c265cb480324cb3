"""When sharing pays, and that calibration finds the rates that it was given."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parrot_kernels.errors import KernelInputError
from parrot_kernels.gpu.calibration import Sizes, Timings, calibrate, fitted
from parrot_kernels.gpu.sharing_cost import AttentionShape, SharingCost

LLAMA = AttentionShape(heads=32, kv_heads=8, head_dim=128)
MULTI_QUERY = AttentionShape(heads=16, kv_heads=1, head_dim=128)


def test_shapes() -> None:
    assert LLAMA.bytes_per_key == 4096
    assert (LLAMA.narrow, MULTI_QUERY.narrow, AttentionShape(40, 1, 64).narrow) == (16, 16, 64)
    assert LLAMA.flops(16, 100) == 4 * 16 * 100 * 128 * 8


@pytest.mark.parametrize(
    ("shape", "keys", "rows", "readers", "pays"),
    [
        (LLAMA, 4096, 8, 8, True),
        (LLAMA, 512, 32, 32, True),
        (LLAMA, 16, 2, 2, False),  # the parts cost more
        (LLAMA, 4096, 8, 1, False),  # nobody else reads it
        (MULTI_QUERY, 4096, 8, 8, True),
    ],
)
def test_when_it_pays(shape: AttentionShape, keys: int, rows: int, readers: int, pays: bool) -> None:
    assert SharingCost().pays(shape, 64, keys, rows, readers) == pays
    assert not SharingCost(share=False).pays(shape, 64, keys, rows, readers)


def test_sharing_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARROT_MQ_SHARED_ATTENTION", "off")
    assert not SharingCost().pays(LLAMA, 64, 4096, 8, 8)
    assert SharingCost(share=True).pays(LLAMA, 64, 4096, 8, 8)
    monkeypatch.setenv("PARROT_MQ_SHARED_ATTENTION", "on")
    assert SharingCost().pays(LLAMA, 64, 4096, 8, 8)
    monkeypatch.setenv("PARROT_MQ_SHARED_ATTENTION", "no")
    with pytest.raises(KernelInputError, match="neither on nor off"):
        SharingCost()


@given(keys=st.integers(1, 500), more=st.integers(0, 500), rows=st.integers(2, 300))
def test_more_keys_never_pay_less(keys: int, more: int, rows: int) -> None:
    cost = SharingCost()
    assert cost.pays(LLAMA, 128, (keys + more) * 16, rows, rows) >= cost.pays(LLAMA, 128, keys * 16, rows, rows)


def test_a_key_weighs_more_where_products_take_longer_than_reading() -> None:
    cost = SharingCost(bytes_per_s=4e12, flops_per_s=4e14)
    assert cost.key_weight(16, LLAMA) == 1.0
    assert cost.key_weight(128, LLAMA) == pytest.approx(128 / 100)


RATES = SharingCost(
    bytes_per_s=3e12, reread_bytes_per_s=5e12, flops_per_s=2e14, part_s=1e-9, item_s=2e-8, launch_s=5e-6
)


def test_calibration_finds_the_rates_behind_the_times() -> None:
    def seconds(size: int) -> float:
        return size * LLAMA.bytes_per_key / RATES.bytes_per_s

    own = RATES.launch_s + seconds(100_000)
    timings = Timings(
        empty_s=RATES.launch_s,
        own_s=own,
        own_keys=100_000,
        same_s=RATES.launch_s + seconds(2000) + 49 * 2000 * LLAMA.bytes_per_key / RATES.reread_bytes_per_s,
        same_keys=2000,
        same_readers=50,
        wide_s=RATES.launch_s + LLAMA.flops(2048, 2000) / RATES.flops_per_s,
        wide_flops=LLAMA.flops(2048, 2000),
        split_s=own + 6000 * LLAMA.heads * RATES.part_s,
        split_parts=6000,
        short_s=RATES.launch_s + seconds(16_000) + 1000 * LLAMA.kv_heads * RATES.item_s,
        short_keys=16_000,
        short_items=1000,
    )
    found = fitted(LLAMA, timings)
    for name, rate in dataclasses.asdict(RATES).items():
        assert getattr(found, name) == pytest.approx(rate, rel=1e-6), name


def test_a_clock_that_jitters_gives_no_rate_below_zero() -> None:
    found = fitted(LLAMA, Timings(1.0, 0.9, 10, 0.8, 10, 2, 0.7, 10, 0.6, 10, 0.5, 10, 10))
    assert all(rate > 0 for rate in dataclasses.astuple(found))


def test_calibration_runs_its_batches(device: torch.device) -> None:
    times: Iterator[float] = iter([1e-6, 3e-6, 5e-6, 4e-6, 6e-6, 8e-6])

    def measure(call: Callable[[], object]) -> float:
        call()
        return next(times)

    shape = AttentionShape(heads=2, kv_heads=1, head_dim=64)
    sizes = Sizes(sequences=2, keys=256, rows=9, short_sequences=3)
    cost = calibrate(shape, device, sizes=sizes, measure=measure)
    assert next(times, None) is None
    assert cost.bytes_per_s == pytest.approx(2 * 256 * shape.bytes_per_key / 2e-6)
    assert cost.launch_s == 1e-6
    # Two sequences of 256 keys, in halves: 3 us more for 4 parts of 2 heads.
    assert cost.part_s == pytest.approx(3e-6 / 8)
