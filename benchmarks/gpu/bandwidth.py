"""How fast a device reads its memory, as every floor here is counted."""

from __future__ import annotations

import torch

from benchmarks.gpu.timing import Clock

GPU_BYTES, CPU_BYTES = 4 << 30, 16 << 20
"""Far more than any cache of a GPU; enough for a dry run."""
SAMPLES = 5


def bytes_per_s(device: torch.device, clock: Clock) -> float:
    """Return the best rate of several sums over, and copies of, memory that no cache holds; a copy reads and writes."""
    size = GPU_BYTES if device.type == "cuda" else CPU_BYTES
    data, copy = (torch.ones(size // 4, device=device) for _ in range(2))
    rates = []
    for moved, call in ((size, data.sum), (2 * size, lambda: copy.copy_(data))):
        recording = clock.record([call], graph=False)
        rates += [moved / recording.sample_s() for _ in range(SAMPLES)]
    return max(rates)
