"""Sampling by the compiled operation: the tokens of its torch twin, and of the definition in float64."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from parrot_kernels import KernelInputError
from parrot_kernels.cpu.backend import CpuBackend
from parrot_kernels.cpu.variant import Variant, supported_variants
from parrot_kernels.sampling import gumbel_noise
from tests.kernels.sampling_case import (
    HOWS,
    ROWS,
    AnyRow,
    How,
    defined_draw,
    logits_of,
    noise_keys,
    parameters,
    torch_draw,
    undrawable,
)

CPU = torch.device("cpu")
pytestmark = pytest.mark.parametrize("variant", [variant.value for variant in supported_variants()])


@functools.cache
def compiled(variant: str) -> CpuBackend:
    return CpuBackend(Variant(variant))


def draw(variant: str, logits: Tensor, hows: Sequence[How], keys: list[tuple[int, int]]) -> list[int]:
    ids = compiled(variant).sample(logits, *parameters(logits, hows, keys))
    assert ids.dtype == torch.int64
    return cast(list[int], ids.tolist())


@pytest.mark.parametrize("how", HOWS, ids=str)
def test_the_tokens_of_the_torch_twin(variant: str, how: How) -> None:
    for rows, vocab in [(1, 700), (6, 130), (5, 32_003)]:
        logits, keys = logits_of(rows, vocab, CPU), [(row, vocab) for row in range(rows)]
        assert draw(variant, logits, [how] * rows, keys) == torch_draw(logits, [how] * rows, keys)


def test_rows_that_draw_differently_on_any_number_of_threads(variant: str) -> None:
    hows = HOWS * 3
    logits, keys = logits_of(len(hows), 5_000, CPU), [(7, row) for row in range(len(hows))]
    strided = torch.full((len(hows), 6_000), float("nan"))
    strided[:, :5_000] = logits
    expected, before = torch_draw(logits, hows, keys), torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert draw(variant, logits, hows, keys) == expected
            assert draw(variant, strided[:, :5_000], hows, keys) == expected
    finally:
        torch.set_num_threads(before)


@settings(max_examples=150, deadline=None)
@given(row=ROWS)
def test_any_row_by_definition(variant: str, row: AnyRow) -> None:
    assert draw(variant, row.logits, [row.how], [row.key]) == [defined_draw(row.logits[0], row.how, row.key)]


def test_equals(variant: str) -> None:
    """Greedy takes the first; a draw among equals goes by the noise alone."""
    logits, keys = torch.zeros(3, 200), [(row, 0) for row in range(3)]
    assert draw(variant, logits, [How(temperature=0.0)] * 3, keys) == [0, 0, 0]
    noise = gumbel_noise(noise_keys(keys, CPU), 200).argmax(-1).tolist()
    for how in (How(), How(top_k=5), How(top_p=0.1), How(top_k=3, top_p=0.01), How(min_p=1.0)):
        assert draw(variant, logits, [how] * 3, keys) == noise


@pytest.mark.parametrize("how", HOWS, ids=str)
def test_tokens_that_cannot_be_drawn(variant: str, how: How) -> None:
    assert draw(variant, undrawable(), [how] * 4, [(row, 0) for row in range(4)]) == [0, 97, 120, 33]


@pytest.mark.parametrize("how", HOWS, ids=str)
def test_nan_is_as_good_as_no_token(variant: str, how: How) -> None:
    logits, keys = logits_of(3, 150, CPU), [(row, 5) for row in range(3)]
    gone = logits.clone()
    for tensor, value in [(logits, float("nan")), (gone, float("-inf"))]:
        tensor[:, 40:90] = value
    assert draw(variant, logits, [how] * 3, keys) == draw(variant, gone, [how] * 3, keys)


def test_a_floor_above_all_tokens_leaves_the_best(variant: str) -> None:
    logits = logits_of(4, 150, CPU)
    hows = [How(min_p=2.0), How(min_p=float("inf")), How(top_p=-1.0), How(top_k=1, top_p=-1.0, min_p=3.0)]
    assert draw(variant, logits, hows, [(row, 0) for row in range(4)]) == logits.argmax(-1).tolist()


def test_what_does_not_fit_is_refused(variant: str) -> None:
    logits = logits_of(2, 10, CPU)
    column, counts, keys = torch.ones(2), torch.ones(2, dtype=torch.int32), torch.ones(2, 2, dtype=torch.int32)
    sample = compiled(variant).sample
    assert len(sample(logits, column, counts, column, column, keys)) == 2
    for arguments in [
        (logits.bfloat16(), column, counts, column, column, keys),
        (logits, column, column, column, column, keys),
        (logits, column[:1], counts, column, column, keys),
    ]:
        with pytest.raises(KernelInputError, match="want"):
            sample(*arguments)
    assert sample(logits[:0], column[:0], counts[:0], column[:0], column[:0], keys[:0]).shape == (0,)
