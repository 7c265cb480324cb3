"""Measuring launches on the GPU at hand and writing them down as data: ``python -m parrot_kernels.gpu.tuning``.

Every launch of a kernel computes the same; they differ in time. Each size of each kernel is measured at the row counts
of a decode step and of a prefill, as replays of a CUDA graph (so without the host's part), and the launch with the
least geometric mean of times is kept. Attention is measured decoding, each sequence alone and behind a shared prefix.
Takes minutes, most of it compiling; what it writes belongs into ``configs``.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import functools
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import triton
from triton.runtime.errors import OutOfResources

from parrot_kernels.gpu.attention_tuning import attention_problems
from parrot_kernels.gpu.launch import FOLDER, Launch, slug
from parrot_kernels.gpu.problem import Problem
from parrot_kernels.gpu.rms_norm import add_rms_norm
from parrot_kernels.gpu.rope_and_store import rope_and_store
from parrot_kernels.gpu.sampling import sample
from parrot_kernels.gpu.silu_mul import silu_mul

Measure = Callable[[Callable[[], object]], float]
"""Returns the milliseconds that a call takes."""
Stored = dict[str, dict[str, dict[str, int]]]
"""Fields of a launch, by kernel and size."""

HEADS, KV_HEADS = 32, 8
NUM_WARPS = (1, 2, 4, 8, 16)
PER_THREAD = (2, 64)
"""Elements of a tile that a thread may have; other launches are not tried."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """A kernel to tune. ``prepare(rows, size, device)`` makes inputs, and returns what runs the kernel on them."""

    kernel: str
    sizes: Sequence[int]
    rows: Sequence[int]
    blocks: Sequence[int]
    prepare: Callable[[int, int, torch.device], Callable[[Launch], object]]

    def problems(self, device: torch.device) -> Iterator[Problem]:
        """Yield a problem for each size."""
        for size in self.sizes:
            runs = [self.prepare(rows, size, device) for rows in self.rows]
            yield Problem(self.kernel, str(size), runs, candidates(self.blocks, least=self._least(size)))

    def _least(self, size: int) -> int:
        return triton.next_power_of_2(size) if self.kernel == "rms_norm" else 1  # whose tile is at least a row


def candidates(blocks: Sequence[int], *, least: int = 1) -> list[Launch]:
    """Return the launches with tiles of ``blocks`` elements, or ``least``, that are worth trying."""
    few, many = PER_THREAD
    tiles = sorted({max(block, least) for block in blocks})
    return [Launch(tile, warps) for tile in tiles for warps in NUM_WARPS if few <= tile / (32 * warps) <= many]


def _rms_norm(rows: int, size: int, device: torch.device) -> Callable[[Launch], object]:
    x = torch.randn(rows, size, dtype=torch.bfloat16, device=device)
    return lambda launch: add_rms_norm(x, x, x[0], 1e-5, launch)


def _silu_mul(rows: int, size: int, device: torch.device) -> Callable[[Launch], object]:
    gate_up = torch.randn(rows, 2 * size, dtype=torch.bfloat16, device=device)
    return lambda launch: silu_mul(gate_up, launch)


def _rope_and_store(rows: int, size: int, device: torch.device) -> Callable[[Launch], object]:
    qkv = torch.randn(rows, HEADS + 2 * KV_HEADS, size, dtype=torch.bfloat16, device=device)
    query, key, value = qkv[:, :HEADS], qkv[:, HEADS:-KV_HEADS], qkv[:, -KV_HEADS:]
    angles, slots = torch.randn(rows, size // 2, device=device), torch.arange(rows, device=device)
    cache = torch.empty(triton.cdiv(rows, 16), KV_HEADS, 16, size, dtype=torch.bfloat16, device=device)
    return lambda launch: rope_and_store(query, key, value, angles, angles, slots, cache, cache, launch)


def _sampling(rows: int, size: int, device: torch.device) -> Callable[[Launch], object]:
    logits = torch.randn(rows, size, device=device) * 3
    share = torch.full([rows], 0.9, device=device)
    no_share, no_count = torch.zeros(rows, device=device), torch.zeros(rows, dtype=torch.int32, device=device)
    keys = torch.arange(2 * rows, dtype=torch.int32, device=device).view(rows, 2)
    return lambda launch: sample(logits, share, no_count, share, no_share, keys, launch)


SUBJECTS = (
    Subject("rms_norm", (64, 128, 2048, 4096, 8192), (32, 4096), (256, 512, 1024, 2048, 4096), _rms_norm),
    Subject("silu_mul", (1024, 4096, 14336), (32, 4096), (128, 256, 512, 1024, 2048), _silu_mul),
    Subject("rope_and_store", (64, 128), (32, 4096), (128, 256, 512, 1024, 2048), _rope_and_store),
    Subject("sampling", (32768, 131072), (1, 32), (1024, 2048, 4096, 8192), _sampling),
)


def graph_replay_ms(run: Callable[[], object]) -> float:
    """Return the median time of ``run`` in a CUDA graph."""
    milliseconds: float = triton.testing.do_bench_cudagraph(run, rep=10, return_mode="median")
    return milliseconds


def tune(problems: Iterable[Problem], measure: Measure = graph_replay_ms) -> Stored:
    """Return the best launch of each problem, as ``configs`` stores them."""
    launches: Stored = {}
    for problem in problems:
        best = min(problem.candidates, key=lambda launch: _score(problem.runs, launch, measure))
        launches.setdefault(problem.kernel, {})[problem.size] = dataclasses.asdict(best)
    return launches


def _score(runs: Sequence[Callable[[Any], object]], launch: object, measure: Measure) -> float:
    """Return the logarithm of the product of the times; infinity where the GPU cannot hold such a program."""
    try:
        return sum(math.log(measure(functools.partial(run, launch))) for run in runs)
    except OutOfResources:
        return math.inf


def write(device_name: str, launches: Stored, folder: Path) -> Path:
    """Write the file of a device, keeping what it says of other kernels; return its path."""
    path = folder / f"{slug(device_name)}.json"
    before: Stored = json.loads(path.read_text())["launches"] if path.is_file() else {}
    versions = {"torch": torch.__version__, "triton": triton.__version__, "cuda": torch.version.cuda}
    stored = {
        "device": device_name,
        "measured_with": {**versions, "date": datetime.datetime.now(datetime.UTC).date().isoformat()},
        "launches": {**before, **launches},
    }
    path.write_text(json.dumps(stored, indent=2) + "\n")
    return path


def main() -> None:
    """Tune kernels for the current GPU and write its file."""
    names = [*(subject.kernel for subject in SUBJECTS), "attention"]
    parser = argparse.ArgumentParser(description="Measure the launches of the Triton kernels on this GPU.")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where to write (default: the package's configs)")
    parser.add_argument("--kernels", nargs="+", choices=names, default=names, help="which (default: all)")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(1, "torch sees no GPU: launches are measured on one\n")
    device = torch.device("cuda", torch.cuda.current_device())
    problems = [subject.problems(device) for subject in SUBJECTS if subject.kernel in arguments.kernels]
    if "attention" in arguments.kernels:
        problems.append(attention_problems(device))
    launches = tune(itertools.chain.from_iterable(problems))
    print(write(torch.cuda.get_device_name(device), launches, arguments.folder))


if __name__ == "__main__":
    main()
