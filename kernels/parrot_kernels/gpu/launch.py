"""How kernels are cut into programs, by kernel, size and device: data in ``configs``, measured by ``tuning``."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from pathlib import Path

import torch

from parrot_kernels.gpu.interpreter import INTERPRETED

FOLDER = Path(__file__).parent / "configs"
DEFAULT = "default"
"""The file for a device that was not measured."""


@dataclasses.dataclass(frozen=True, slots=True)
class Launch:
    """The shape of a launch; ``block`` is the elements of a program's tile, a power of two.

    There are no stages to choose: these kernels read everything once, with all loads of a tile in flight at once.
    """

    block: int
    num_warps: int


@functools.cache
def launch_for(device: torch.device, kernel: str, size: int) -> Launch:
    """Return the launch of ``kernel`` for a problem of ``size`` (columns, say) on ``device``: the next known size's."""
    by_size = {int(known): launch for known, launch in stored_launches(device, kernel).items()}
    return Launch(**by_size[min((known for known in by_size if known >= size), default=max(by_size))])


def stored_launches(device: torch.device, kernel: str) -> dict[str, dict[str, int]]:
    """Return the fields of the launches of ``kernel`` by its problems; of the default if ``device`` has no file."""
    launches: dict[str, dict[str, int]] = _stored(_file_name(device)).get(kernel, {})
    return launches or _stored(DEFAULT).get(kernel, {})


@functools.cache
def _file_name(device: torch.device) -> str:
    if INTERPRETED or device.type != "cuda":
        return DEFAULT
    name = slug(torch.cuda.get_device_name(device))
    return name if (FOLDER / f"{name}.json").is_file() else DEFAULT


def slug(device_name: str) -> str:
    """Return the name of a device's file: ``nvidia_h200`` for ``NVIDIA H200``."""
    return re.sub(r"[^a-z0-9]+", "_", device_name.lower()).strip("_")


@functools.cache
def _stored(file_name: str) -> dict[str, dict[str, dict[str, int]]]:
    launches: dict[str, dict[str, dict[str, int]]] = json.loads((FOLDER / f"{file_name}.json").read_text())["launches"]
    return launches
