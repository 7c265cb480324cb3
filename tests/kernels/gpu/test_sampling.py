"""The sampling kernel: the same tokens as the engine's torch sampler, and as the definition in float64."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from parrot_kernels import KernelInputError
from parrot_kernels.gpu.launch import Launch
from parrot_kernels.gpu.sampling import sample
from parrot_workers.engine import sampler
from parrot_workers.engine.noise import gumbel_noise, noise_key

SMALL = Launch(block=64, num_warps=2)
"""So that small vocabularies too have several blocks, and splits."""


@dataclasses.dataclass(frozen=True)
class How:
    """How a row draws; what the engine's sampler reads of a request."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


def draw(logits: Tensor, hows: Sequence[How], keys: list[tuple[int, int]], launch: Launch = SMALL) -> list[int]:
    def column(name: str, dtype: torch.dtype) -> Tensor:
        return torch.tensor([getattr(how, name) for how in hows], dtype=dtype, device=logits.device)

    ids = sample(
        logits,
        column("temperature", torch.float32),
        column("top_k", torch.int32),
        column("top_p", torch.float32),
        column("min_p", torch.float32),
        torch.tensor([noise_key(*key) for key in keys], dtype=torch.int32, device=logits.device),
        launch,
    )
    assert ids.dtype == torch.int64
    return cast(list[int], ids.tolist())


def engine_draw(logits: Tensor, hows: Sequence[How], keys: list[tuple[int, int]]) -> list[int]:
    """By the parts of the engine's sampler."""
    sampled = [dataclasses.replace(how, temperature=how.temperature or 1.0) for how in hows]
    warped = sampler.warp(logits, cast(list, [SimpleNamespace(sampling=how) for how in sampled]))
    noisy = warped + gumbel_noise(keys, logits.shape[1], logits.device)
    return [int((noisy if how.temperature else logits)[row].argmax()) for row, how in enumerate(hows)]


def defined_draw(logits: Tensor, how: How, key: tuple[int, int]) -> int:
    """By definition, in float64: of equal tokens all or none are allowed."""
    if not how.temperature:
        return int(logits.argmax())
    x = (logits / how.temperature).double()
    allowed = x >= (x.sort(descending=True).values[min(how.top_k, len(x)) - 1] if how.top_k else -torch.inf)
    mass = torch.where(allowed, (x - x.max()).exp(), 0.0)
    above = torch.stack([mass[x > value].sum() for value in x])
    if how.top_p < 1:
        allowed &= (above < how.top_p * mass.sum()) | (x == x.max())
    if how.min_p:
        allowed &= x >= x.max() + torch.tensor(how.min_p).double().log()
    noisy = x + gumbel_noise([key], len(x), logits.device)[0]
    return int(torch.where(allowed, noisy, -torch.inf).argmax())


def logits_of(rows: int, vocab: int, device: torch.device, spread: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(rows * vocab)
    return (torch.randn(rows, vocab, generator=generator) * spread).to(device)


HOWS = [
    How(temperature=0.0),
    How(),
    How(temperature=0.6),
    How(top_k=1),
    How(top_k=20),
    How(top_p=0.8),
    How(top_p=0.0),
    How(min_p=0.2),
    How(temperature=1.7, top_k=30, top_p=0.9),
    How(temperature=2.5, top_k=100, top_p=0.3, min_p=0.05),
    How(temperature=3.0, top_k=7, top_p=0.99),
    How(top_k=10_000, top_p=0.5),
]


@pytest.mark.parametrize("how", HOWS, ids=str)
@pytest.mark.usefixtures("poison")
def test_the_engines_tokens(device: torch.device, how: How) -> None:
    for rows, vocab in [(1, 700), (6, 130)]:
        logits, keys = logits_of(rows, vocab, device), [(row, vocab) for row in range(rows)]
        assert draw(logits, [how] * rows, keys) == engine_draw(logits, [how] * rows, keys)


@pytest.mark.usefixtures("poison")
def test_rows_that_draw_differently(device: torch.device) -> None:
    logits, keys = logits_of(len(HOWS), 333, device), [(7, row) for row in range(len(HOWS))]
    assert draw(logits, HOWS, keys) == engine_draw(logits, HOWS, keys)
    strided = torch.full((len(HOWS), 400), float("nan"), device=device)
    strided[:, :333] = logits
    assert draw(strided[:, :333], HOWS, keys) == engine_draw(logits, HOWS, keys)


@settings(max_examples=50, deadline=None)
@given(
    vocab=st.integers(1, 300),
    grain=st.sampled_from([0.0, 0.5, 4.0]),
    spread=st.sampled_from([0.01, 1.0, 8.0]),
    how=st.builds(
        How,
        temperature=st.sampled_from([0.0, 0.3, 1.0, 5.0]),
        top_k=st.sampled_from([0, 1, 2, 17, 299]),
        top_p=st.sampled_from([1.0, 0.95, 0.5, 0.01]),
        min_p=st.sampled_from([0.0, 0.0, 0.1, 1.0]),
    ),
    seed=st.integers(0, 1000),
)
def test_any_row_by_definition(
    device: torch.device, vocab: int, grain: float, spread: float, how: How, seed: int
) -> None:
    logits = torch.randn(1, vocab, generator=torch.Generator().manual_seed(seed)) * spread
    if grain:  # logits of a coarse dtype: many are equal
        logits = (logits / grain).round() * grain
    logits = logits.to(device)
    assert draw(logits, [how], [(seed, 0)]) == [defined_draw(logits[0], how, (seed, 0))]


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
    noise = gumbel_noise(keys, 200, device).argmax(-1).tolist()
    for how in (How(), How(top_k=5), How(top_p=0.1), How(top_k=3, top_p=0.01), How(min_p=1.0)):
        assert draw(logits, [how] * 3, keys) == noise


@pytest.mark.parametrize("how", HOWS, ids=str)
def test_tokens_that_cannot_be_drawn(device: torch.device, how: How) -> None:
    logits = torch.full((4, 150), float("-inf"), device=device)
    logits[1, 97] = -4.0
    logits[2, 5:9] = float("nan")
    logits[2, 120] = 2.0
    logits[3, 33] = float("inf")
    assert draw(logits, [how] * 4, [(row, 0) for row in range(4)]) == [0, 97, 120, 33]


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
