"""``python -m benchmarks.engine.bandwidth``: how fast this machine reads memory, in bytes a second, as one number."""

from __future__ import annotations

import time

import torch

SIZE_BYTES = 1 << 30
REPEATS = 5


def measure() -> float:
    """Return the best rate of several sums over memory far larger than any cache."""
    data = torch.ones(SIZE_BYTES // 4)
    best_s = float("inf")
    for _ in range(REPEATS):
        start_s = time.perf_counter()
        data.sum()
        best_s = min(best_s, time.perf_counter() - start_s)
    return SIZE_BYTES / best_s


if __name__ == "__main__":
    print(measure())
