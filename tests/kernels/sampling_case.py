"""Rows of logits and ways to draw from them, and what must be drawn: by the torch twin, and by definition."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import cast

import torch
from hypothesis import strategies as st
from torch import Tensor

from parrot_kernels.sampling import gumbel_noise
from parrot_kernels.torch_backend import TorchBackend
from parrot_workers.engine.noise import noise_key


@dataclasses.dataclass(frozen=True)
class How:
    """How a row draws."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


def parameters(logits: Tensor, hows: Sequence[How], keys: list[tuple[int, int]]) -> list[Tensor]:
    fields = {"temperature": torch.float32, "top_k": torch.int32, "top_p": torch.float32, "min_p": torch.float32}
    columns = [
        torch.tensor([getattr(how, name) for how in hows], dtype=dtype, device=logits.device)
        for name, dtype in fields.items()
    ]
    return [*columns, noise_keys(keys, logits.device)]


def noise_keys(keys: list[tuple[int, int]], device: torch.device) -> Tensor:
    return torch.tensor([noise_key(*key) for key in keys], dtype=torch.int32, device=device)


def torch_draw(logits: Tensor, hows: Sequence[How], keys: list[tuple[int, int]]) -> list[int]:
    """By the torch twin."""
    ids = TorchBackend().sample(logits, *parameters(logits, hows, keys))
    assert ids.dtype == torch.int64
    return cast(list[int], ids.tolist())


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
    noisy = x + gumbel_noise(noise_keys([key], logits.device), len(x))[0]
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


def undrawable() -> Tensor:
    """Return rows whose only tokens to draw are 0 (for want of any), 97, 120 and 33."""
    logits = torch.full((4, 150), float("-inf"))
    logits[1, 97] = -4.0
    logits[2, 5:9] = float("nan")
    logits[2, 120] = 2.0
    logits[3, 33] = float("inf")
    return logits


@dataclasses.dataclass(frozen=True)
class AnyRow:
    """A row; with a ``grain`` of a coarse dtype, so that many of its logits are equal."""

    vocab: int
    grain: float
    spread: float
    how: How
    seed: int

    @property
    def logits(self) -> Tensor:
        """[1, vocab]."""
        logits = torch.randn(1, self.vocab, generator=torch.Generator().manual_seed(self.seed)) * self.spread
        return (logits / self.grain).round() * self.grain if self.grain else logits

    @property
    def key(self) -> tuple[int, int]:
        """Of its noise."""
        return self.seed, 0


ROWS = st.builds(
    AnyRow,
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
