"""How much memory is free for us: the machine's, within the limit of the control group that we run in."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

import torch

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device) -> int:
    """Return what can be allocated on ``device`` before somebody swaps or is killed."""
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free
    return min([_available(), *_cgroup_rooms()])


def give_back() -> None:
    """Give the pages that freed tensors of the CPU have left in the allocator back to the system, where it can."""
    # glibc keeps freed pieces below a limit that grows with use; loading a model leaves it a sixth of the model.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _available() -> int:
    """``MemAvailable`` of the machine: free memory and caches that can be dropped."""
    for line in (PROC / "meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    raise OSError(f"{PROC / 'meminfo'} says nothing about MemAvailable")


def _cgroup_rooms() -> Iterator[int]:
    """Yield what the limit of our control group, and of each above it, leaves (versions 1 and 2)."""
    try:
        groups = (PROC / "self" / "cgroup").read_text().splitlines()
    except FileNotFoundError:
        return
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, limit, usage, cache = CGROUPS, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            root, limit, usage, cache = (
                CGROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
            )  # fmt: skip
        else:
            continue
        folder = root / path.lstrip("/")
        for group in [folder, *folder.parents]:
            if group.is_relative_to(root):
                yield from _room(group, limit, usage, cache)


def _room(group: Path, limit: str, usage: str, cache: str) -> Iterator[int]:
    try:
        most, used = (group / limit).read_text().strip(), int((group / usage).read_text())
        lines = (group / "memory.stat").read_text().splitlines()
    except FileNotFoundError:  # the root has no limit; inside a container the path may not be ours to see
        return
    if most != "max":
        stat = dict(line.split() for line in lines)
        yield max(0, int(most) - used + int(stat.get(cache, 0)))
