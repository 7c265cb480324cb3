"""How kernels are cut into programs, by kernel, size and device: data in ``configs``, measured by ``tuning``."""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import json
import re

import torch

from parrot_kernels.gpu.interpreter import INTERPRETED

DEFAULT = "default"
"""The file for a device that was not measured."""


@dataclasses.dataclass(frozen=True, slots=True)
class Launch:
    """The shape of a launch. ``block``: elements of a program's tile, a power of two; see each kernel for its axes."""

    block: int
    num_warps: int


@functools.cache
def launch_for(device: torch.device, kernel: str, size: int) -> Launch:
    """Return the launch of ``kernel`` for a problem of ``size`` (columns, say) on ``device``."""
    by_size = _launches(_file_name(device))[kernel]
    return by_size[min((known for known in by_size if known >= size), default=max(by_size))]


@functools.cache
def _file_name(device: torch.device) -> str:
    if INTERPRETED or device.type != "cuda":
        return DEFAULT
    name = slug(torch.cuda.get_device_name(device))
    return name if _folder().joinpath(f"{name}.json").is_file() else DEFAULT


def slug(device_name: str) -> str:
    """Return the name of a device's file: ``nvidia_h200`` for ``NVIDIA H200``."""
    return re.sub(r"[^a-z0-9]+", "_", device_name.lower()).strip("_")


@functools.cache
def _launches(file_name: str) -> dict[str, dict[int, Launch]]:
    stored = json.loads(_folder().joinpath(f"{file_name}.json").read_text())
    return {
        kernel: {int(size): Launch(**launch) for size, launch in by_size.items()}
        for kernel, by_size in stored["launches"].items()
    }


def _folder() -> importlib.resources.abc.Traversable:
    return importlib.resources.files("parrot_kernels.gpu").joinpath("configs")
