"""Launch every Triton kernel on a GPU that is not there: compiled to machine code, and all but started.

A program of its own, for it must not run where kernels are interpreted:

    python -m tests.kernels.gpu.absent_gpu 90

compiles for compute capability 9.0 and prints JSON: "compiled", a list of {"kernel", "registers", "stack", "shared"} in
bytes but for the registers, which a thread has; and "again", the kernels that are compiled once more in later steps of
the same model, where a server would stand still for seconds. The launchers are called as on a GPU, with CPU tensors.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from parrot_kernels import AttentionPlan
from parrot_kernels.fp8 import FP8
from parrot_kernels.gpu.backend import GpuBackend
from parrot_kernels.gpu.sampling import sample

MAX_SHARED_BYTES = 227 * 1024


class AbsentGpu:
    """What Triton asks of a driver; keeps the binaries that it is given to load."""

    def __init__(self, capability: int) -> None:
        self.capability = capability
        self.loaded: list[tuple[str, bytes, int]] = []
        self.utils = self

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": MAX_SHARED_BYTES}

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[int, int, int, int, int]:
        """Return (module, function, registers, spilled, most threads)."""
        self.loaded.append((name, binary, shared))
        return 1, 1, 0, 0, 1024

    def launcher_cls(self, source: object, metadata: object) -> Callable[..., None]:
        return lambda *arguments: None


def launch_step(kernels: GpuBackend, rows: int) -> None:
    """Launch what the steps of a model launch; they differ in their rows, and in where these lie."""
    launch_elementwise(kernels, torch.bfloat16, rows)
    launch_attention(kernels, rows)
    launch_sampling(rows, 128256, shift=rows % 3)


def launch_elementwise(kernels: GpuBackend, dtype: torch.dtype, rows: int) -> None:
    dim, heads, kv_heads, hidden = 128, 32, 8, 4096
    x = torch.zeros(rows, hidden, dtype=dtype)
    kernels.rms_norm(x, x[0], 1e-5)
    kernels.add_rms_norm(x, x, x[0], 1e-5)
    kernels.silu_mul(torch.zeros(rows, 2 * 14336, dtype=dtype))
    qkv = torch.zeros(rows, heads + 2 * kv_heads, dim, dtype=dtype)
    query, key, value = qkv.split([heads, kv_heads, kv_heads], 1)
    query = kernels.rms_norm(query, x[0, :dim], 1e-5)
    cache = torch.zeros(4, kv_heads, 16, dim, dtype=dtype)
    for half in (64, 16, 0):
        angles, slots = torch.zeros(rows, half), torch.zeros(rows, dtype=torch.int64)
        kernels.rope_and_store(query, key, value, angles, angles, slots, cache, cache)
        short = cache.to(FP8)
        kernels.rope_and_store(query, key, value, angles, angles, slots, short, short, key_scale=0.5, value_scale=0.25)


def launch_attention(kernels: GpuBackend, rows: int) -> None:
    heads, kv_heads, dim = 32, 8, 128
    query_lens = [200 + rows, 1, 1, 1]
    plan = AttentionPlan(query_lens, [490] * 4, [[*range(30), 30 + i] for i in range(4)])
    query = torch.zeros(sum(query_lens), heads, dim, dtype=torch.bfloat16)
    cache = torch.zeros(40, kv_heads, 16, dim, dtype=torch.bfloat16)
    kernels.paged_attention(query, cache, cache, plan, scale=0.1)


def launch_sampling(rows: int, vocab: int, shift: int) -> None:
    """Sample with columns that lie ``shift`` elements behind where memory was allocated."""
    column, keys = torch.ones(shift + rows)[shift:], torch.zeros(2 * (shift + rows), dtype=torch.int32)[2 * shift :]
    counts = torch.ones(shift + rows, dtype=torch.int32)[shift:]
    sample(torch.zeros(rows, vocab), column, counts, column, column, keys.view(rows, 2))


def launch_wide(kernels: GpuBackend, dim: int) -> None:
    """Norm rows as long as the largest models have them, and longer: a row must fit the registers."""
    x = torch.zeros(2, dim, dtype=torch.bfloat16)
    kernels.rms_norm(x, x[0], 1e-5)
    kernels.add_rms_norm(x, x, x[0], 1e-5)


def launch_odd(kernels: GpuBackend, size: int) -> None:
    """Launch with sizes that no vector divides; Triton compiles those of 1 as constants."""
    x = torch.zeros(size, size)
    kernels.rms_norm(x, x[0], 1e-5)
    kernels.add_rms_norm(x, x, x[0], 1e-5)
    kernels.silu_mul(torch.zeros(size, 2 * size))
    heads, cache = torch.zeros(size, size, size), torch.zeros(1, size, 16, size)
    angles, slots = torch.zeros(size, size // 2), torch.zeros(size, dtype=torch.int64)
    kernels.rope_and_store(heads, heads, heads, angles, angles, slots, cache, cache)
    launch_sampling(size, size, shift=0)


def usage(name: str, binary: bytes, shared: int) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        text = subprocess.run(
            [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name],
            capture_output=True, text=True, check=True, timeout=60,
        ).stdout  # fmt: skip
    registers, stack = (int(found) for found in re.findall(r"(?:REG|STACK):(\d+)", text))
    return {"kernel": name, "registers": registers, "stack": stack, "shared": shared}


def main(capability: int) -> None:
    gpu = AbsentGpu(capability)
    driver.set_active(gpu)
    kernels = GpuBackend("cpu")
    launch_step(kernels, 3)
    count = len(gpu.loaded)
    for rows in (1, 2, 16, 17):
        launch_step(kernels, rows)
    again = [name for name, *_ in gpu.loaded[count:]]
    for dtype in (torch.float16, torch.float32):
        launch_elementwise(kernels, dtype, 3)
    for dim in (8192, 16384, 32768):
        launch_wide(kernels, dim)
    for size in (1, 7):
        launch_odd(kernels, size)
    print(json.dumps({"compiled": [usage(*binary) for binary in gpu.loaded], "again": again}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
