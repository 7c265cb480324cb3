"""Memory for the results of the Triton kernels that shows what was written and what was not."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

GUARD = 64
"""Elements before and behind a tensor; a multiple of every alignment that matters."""


class Poison:
    """Stands in for ``torch.empty``: all bytes are 255, which is NaN in every float and -1 in every integer."""

    def __init__(self) -> None:
        self._empty = torch.empty
        self._given: list[tuple[Tensor, int]] = []

    def empty(self, *size: int | tuple[int, ...], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        shape = torch.Size(size[0] if isinstance(size[0], tuple) else size)  # type: ignore[arg-type]
        length = math.prod(shape)
        whole = self._empty(length + 2 * GUARD, dtype=dtype, device=device)
        whole.view(torch.uint8).fill_(255)
        self._given.append((whole, length))
        return whole[GUARD : GUARD + length].view(shape)

    def check(self) -> None:
        for whole, length in self._given:
            for guard in (whole[:GUARD], whole[GUARD + length :]):
                assert bool((guard.contiguous().view(torch.uint8) == 255).all()), "something was written outside"


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Iterator[Poison]:
    """Results come in poisoned memory; at the end, nothing outside of them may have been written."""
    poison = Poison()
    monkeypatch.setattr(torch, "empty", poison.empty)
    yield poison
    poison.check()
