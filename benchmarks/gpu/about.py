"""With what, on what and when something was measured."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import subprocess
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
PACKAGES = ("torch", "triton", "transformers", "flashinfer-python", "numpy")
COMMAND_TIMEOUT_S = 20.0


def about(device: torch.device) -> dict[str, str | None]:
    """Return versions (None: not there), the device's name and driver, the date, and the revision of the code."""
    versions = {package: _version(package) for package in PACKAGES}
    is_cuda = device.type == "cuda"
    return {
        **versions,
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "driver": _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if is_cuda else None,
        "device": torch.cuda.get_device_name(device) if is_cuda else platform.machine(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "revision": _said("git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _said(*command: str) -> str | None:
    """Return the first line that a command prints, None if there is no such command or nothing to tell."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.splitlines()
    return lines[0].strip() if done.returncode == 0 and lines else None
