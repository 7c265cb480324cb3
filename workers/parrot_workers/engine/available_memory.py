"""How much memory this process may still take, by the kernel and by the control groups it is in."""

from __future__ import annotations

import os
from pathlib import Path

_UNLIMITED = 1 << 60
"""The first version of control groups says "no limit" by a huge number."""


def available_bytes(root: Path = Path("/")) -> int:
    """Return the smallest of what the machine has available and what each control group above us leaves.

    File caches that the kernel can drop count as available. ``root`` is where /proc and /sys are (for tests).
    """
    return max(0, min([_machine(root), *_groups(root)]))


def _machine(root: Path) -> int:
    file = root / "proc/meminfo"
    for line in file.read_text().splitlines() if file.exists() else ():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # no Linux: all there is, for want of better


def _groups(root: Path) -> list[int]:
    """What is left in each group that has a limit, both versions' hierarchies, from ours up to the root."""
    file = root / "proc/self/cgroup"
    left = []
    for line in file.read_text().splitlines() if file.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base = root / ("sys/fs/cgroup/memory" if controllers else "sys/fs/cgroup")
        # In a container the path may be the host's, which is not there: what is mounted is then our group itself.
        ours = base / path.lstrip("/")
        for folder in [ours, *ours.parents] if ours.is_dir() else [base]:
            if not folder.is_relative_to(base):
                break
            left += _left(folder, *_FILES[bool(controllers)])
    return left


_FILES = {
    False: ("memory.max", "memory.current", "inactive_file"),
    True: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""Limit, use, and the counter of droppable file cache in memory.stat; by whether it is the first version."""


def _left(folder: Path, limit: str, usage: str, droppable: str) -> list[int]:
    try:
        allowed = (folder / limit).read_text().strip()
        if allowed == "max" or int(allowed) >= _UNLIMITED:
            return []
        used = int((folder / usage).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except FileNotFoundError:  # the root group has no limit, and no such files
        return []
    return [int(allowed) - used + int(stat.get(droppable, 0))]
