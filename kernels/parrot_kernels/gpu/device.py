"""The GPU under the kernels: how many multiprocessors it has, and making it the current one for a launch."""

from __future__ import annotations

import contextlib
import functools

import torch
from torch import Tensor

INTERPRETED_SMS = 4
"""Multiprocessors that the interpreter stands for: enough that work is split."""


@functools.cache
def num_sms(device: torch.device) -> int:
    """Multiprocessors of ``device``."""
    if device.type != "cuda":
        return INTERPRETED_SMS
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count


@functools.cache
def has_fp8(device: torch.device) -> bool:
    """Return whether the device converts float8: GPUs before Ada and Hopper cannot."""
    return device.type == "cpu" or torch.cuda.get_device_capability(device) >= (8, 9)


def on_device_of(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """Make the device of ``tensor`` current: Triton launches on the current one, wherever the pointers lie."""
    if tensor.device.type != "cuda" or tensor.device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(tensor.device)
