"""The sampling kernel: the same tokens as its torch twin, and as the definition in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from parrot_kernels import KernelInputError
from parrot_kernels.gpu.backend import GpuBackend
from parrot_kernels.gpu.launch import Launch
from parrot_kernels.gpu.sampling import sample
from parrot_kernels.sampling import gumbel_noise
from parrot_kernels.torch_backend import TorchBackend
from parrot_workers.engine import sampler
from tests.engine.test_sampler import make_sequence
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

SMALL = Launch(block=64, num_warps=2)
"""So that small vocabularies too have several blocks, and splits."""


def draw(logits: Tensor, hows: Sequence[How], keys: list[tuple[int, int]], launch: Launch = SMALL) -> list[int]:
    ids = sample(logits, *parameters(logits, hows, keys), launch)
    assert ids.dtype == torch.int64
    return cast(list[int], ids.tolist())


@pytest.mark.parametrize("how", HOWS, ids=str)
@pytest.mark.usefixtures("poison")
def test_the_tokens_of_the_torch_twin(device: torch.device, how: How) -> None:
    for rows, vocab in [(1, 700), (6, 130)]:
        logits, keys = logits_of(rows, vocab, device), [(row, vocab) for row in range(rows)]
        assert draw(logits, [how] * rows, keys) == torch_draw(logits, [how] * rows, keys)


@pytest.mark.usefixtures("poison")
def test_rows_that_draw_differently(device: torch.device) -> None:
    logits, keys = logits_of(len(HOWS), 333, device), [(7, row) for row in range(len(HOWS))]
    assert draw(logits, HOWS, keys) == torch_draw(logits, HOWS, keys)
    strided = torch.full((len(HOWS), 400), float("nan"), device=device)
    strided[:, :333] = logits
    assert draw(strided[:, :333], HOWS, keys) == torch_draw(logits, HOWS, keys)


@settings(max_examples=50, deadline=None)
@given(row=ROWS)
def test_any_row_by_definition(device: torch.device, row: AnyRow) -> None:
    logits = row.logits.to(device)
    assert draw(logits, [row.how], [row.key]) == [defined_draw(logits[0], row.how, row.key)]


def test_splits_do_not_matter(device: torch.device) -> None:
    logits, keys = logits_of(1, 500, device), [(3, 4)]
    for how in (HOWS[0], HOWS[1], HOWS[9]):
        for block in (32, 64, 512):
            assert draw(logits, [how], keys, Launch(block, 1)) == draw(logits, [how], keys)


def test_equals(device: torch.device) -> None:
    """Greedy takes the first; a draw among equals goes by the noise alone."""
    logits = torch.zeros(3, 200, device=device)
    keys = [(row, 0) for row in range(3)]
    assert draw(logits, [How(temperature=0.0)] * 3, keys) == [0, 0, 0]
    noise = gumbel_noise(noise_keys(keys, device), 200).argmax(-1).tolist()
    for how in (How(), How(top_k=5), How(top_p=0.1), How(top_k=3, top_p=0.01), How(min_p=1.0)):
        assert draw(logits, [how] * 3, keys) == noise


@pytest.mark.parametrize("how", HOWS, ids=str)
def test_tokens_that_cannot_be_drawn(device: torch.device, how: How) -> None:
    assert draw(undrawable().to(device), [how] * 4, [(row, 0) for row in range(4)]) == [0, 97, 120, 33]


@pytest.mark.parametrize("how", HOWS, ids=str)
def test_nan_is_as_good_as_no_token(device: torch.device, how: How) -> None:
    logits, keys = logits_of(3, 150, device), [(row, 5) for row in range(3)]
    gone = logits.clone()
    for tensor, value in [(logits, float("nan")), (gone, float("-inf"))]:
        tensor[:, 40:90] = value
    assert draw(logits, [how] * 3, keys) == draw(gone, [how] * 3, keys)


def test_a_floor_above_all_tokens_leaves_the_best(device: torch.device) -> None:
    """Who asks for the impossible gets an answer: a kernel that does not end takes the GPU with it."""
    logits = logits_of(4, 150, device)
    hows = [How(min_p=2.0), How(min_p=float("inf")), How(top_p=-1.0), How(top_k=1, top_p=-1.0, min_p=3.0)]
    assert draw(logits, hows, [(row, 0) for row in range(4)]) == logits.argmax(-1).tolist()


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    logits = logits_of(2, 10, device)
    column, counts = torch.ones(2, device=device), torch.ones(2, dtype=torch.int32, device=device)
    keys = torch.ones(2, 2, dtype=torch.int32, device=device)
    assert len(sample(logits, column, counts, column, column, keys)) == 2
    for arguments in [
        (logits.bfloat16(), column, counts, column, column, keys),
        (logits.T, column, counts, column, column, keys),
        (logits[:, :0], column, counts, column, column, keys),
        (logits, column, column, column, column, keys),
        (logits, column[:1], counts, column, column, keys),
        (logits, column, counts, column, column, keys[:, :1]),
    ]:
        with pytest.raises(KernelInputError, match="want"):
            sample(*arguments)


def test_no_rows(device: torch.device) -> None:
    column, keys = torch.empty(0, device=device), torch.empty(0, 2, dtype=torch.int32, device=device)
    assert sample(torch.empty(0, 10, device=device), column, column.int(), column, column, keys).shape == (0,)


@pytest.mark.parametrize("count", [1, 7, 33])
def test_the_engines_sampler_draws_the_same_tokens_by_it(device: torch.device, count: int) -> None:
    ways: list[dict[str, Any]] = [
        {}, {"temperature": 1.0}, {"temperature": 0.7, "top_k": 20, "top_p": 0.9}, {"temperature": 2.0, "min_p": 0.1},
        {"repetition_penalty": 1.3}, {"temperature": 1.0, "min_tokens": 9, "logit_bias": {5: 4.0}},
        {"temperature": 1.0, "top_k": 2**40, "presence_penalty": 0.5},
    ]  # fmt: skip
    rows = [make_sequence(f"s{row}", **ways[(row + count) % len(ways)]) for row in range(count)]
    depths = [row % 3 for row in range(count)]
    logits = logits_of(count, 210, device)
    drawn = [
        sampler.sample(kernels, logits.clone(), rows, depths).tolist()
        for kernels in (GpuBackend(device), TorchBackend())
    ]
    assert drawn[0] == drawn[1]
