"""The packed linear layer beside oneDNN's (a private operator of torch) and a bare read, alternating in one process.

In a decode step every weight comes from memory: the calls rotate over copies of the layer that no cache holds.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from parrot_kernels import backend_for

LAYERS = {
    "s": {"qkv": (1024, 512), "o": (512, 512), "gate_up": (2816, 512), "down": (512, 1408), "lm_head": (4096, 512)},
    "l": {
        "qkv": (2048, 1024),
        "o": (1024, 1024),
        "gate_up": (8192, 1024),
        "down": (1024, 4096),
        "lm_head": (32000, 1024),
    },
}
"""[out, in] of the layers of two Llama models, of 28 and of 443 million parameters."""
COLD_BYTES = 256 << 20
ROUNDS = 9


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of one call, over rounds."""

    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half of the distance between the quartiles, in percent of the median."""
        low, _, high = statistics.quantiles(self.seconds, n=4)
        return 50 * (high - low) / self.median


def alternate(calls: list[Callable[[int], object]], seconds: float) -> list[Timing]:
    """Time each call, given a running number, round by round; a round takes as many as fit the time."""
    taken: list[list[float]] = [[] for _ in calls]
    count = 1
    for index in range(-1, ROUNDS):  # round -1 warms up and tells how many calls a round has
        start = time.perf_counter()
        for call, times in zip(calls, taken, strict=True):
            begin = time.perf_counter()
            for i in range(count):
                call(max(index, 0) * count + i)
            if index >= 0:
                times.append((time.perf_counter() - begin) / count)
        if index < 0:
            count = max(2, int(seconds / ROUNDS / (time.perf_counter() - start)))
    return [Timing(times) for times in taken]


def measure(out_features: int, in_features: int, dtype: torch.dtype, rows: list[int], seconds: float) -> Iterator[str]:
    """Yield a line for each number of rows."""
    kernels = backend_for("cpu")
    weight = torch.randn(out_features, in_features).to(dtype) / in_features**0.5
    copies = -(-COLD_BYTES // weight.nbytes)
    ours = [kernels.pack_linear(weight) for _ in range(copies)]
    theirs = [torch.ops.mkldnn._reorder_linear_weight(weight.clone(), None) for _ in range(copies)]
    raw = torch.ones(COLD_BYTES // 8, dtype=torch.int64).split(weight.nbytes // 8)

    for num_rows in rows:
        x = torch.randn(num_rows, in_features).to(dtype)

        def packed(i: int, x: Tensor = x) -> None:
            kernels.linear(x, ours[i % copies])

        def onednn(i: int, x: Tensor = x) -> None:
            torch.ops.mkldnn._linear_pointwise(x, theirs[i % copies], None, "none", [], "")

        def read(i: int) -> None:
            raw[i % (len(raw) - 1 or 1)].sum()

        mine, peer, limit = alternate([packed, onednn, read], seconds)
        rate, read_rate = (weight.nbytes / timing.median / 1e9 for timing in (mine, limit))
        flops = 2 * num_rows * weight.numel() / mine.median / 1e9
        yield (
            f"{out_features:>5}x{in_features:<5} {num_rows:>5} | {mine.median * 1e6:9.1f} {mine.spread:3.0f} "
            f"{rate:6.1f} {flops:7.0f} | {peer.median * 1e6:9.1f} {peer.spread:3.0f} "
            f"{peer.median / mine.median:5.2f} | {read_rate:9.1f} {100 * rate / read_rate:6.0f}%"
        )
