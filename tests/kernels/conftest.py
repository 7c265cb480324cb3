"""Where the tests of the Triton kernels run: on a GPU (marked ``gpu``), or in Triton's interpreter if there is none."""

from __future__ import annotations

import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Set by ``tests/conftest.py`` on a machine without a GPU. One process interprets the kernels or compiles them."""


@pytest.fixture(scope="session", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device of a Triton kernel's tensors: the CPU in the interpreter, else the GPU."""
    return torch.device(request.param)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what this process cannot run: what is for a GPU, or what is for the interpreter."""
    if not INTERPRETED and not torch.cuda.is_available():
        raise pytest.UsageError("torch sees no GPU: set TRITON_INTERPRET=1 to interpret the Triton kernels")
    cannot = [item for item in items if (INTERPRETED if _is_native(item) else _has_device(item) and not INTERPRETED)]
    if cannot:
        config.hook.pytest_deselected(items=cannot)
        items[:] = [item for item in items if item not in cannot]


def _has_device(item: pytest.Item) -> bool:
    return "device" in getattr(item, "fixturenames", ())


def _is_native(item: pytest.Item) -> bool:
    return item.get_closest_marker("gpu") is not None
