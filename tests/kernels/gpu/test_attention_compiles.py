"""The attention kernel compiled for GPUs that this machine may not have: Triton and its assembler need none."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from parrot_kernels.gpu.attention_launch import AttentionLaunch
from parrot_kernels.gpu.sharing_cost import AttentionShape

SHARED_BYTES = 227 * 1024
"""Shared memory of a multiprocessor of an H100 or H200, of which each program takes 1 KiB more than it asks for."""
REGISTERS = 64 * 1024
"""Of a multiprocessor; a thread takes them by eights."""
CASES = [
    ("bf16", "bf16", 128, 16, False),
    ("bf16", "bf16", 64, 16, False),
    ("bf16", "bf16", 128, 64, True),
    ("bf16", "bf16", 128, 128, False),
    ("bf16", "fp8e4nv", 128, 16, False),
    ("fp16", "fp8e4nv", 64, 32, True),
    ("fp32", "fp32", 64, 32, False),
]
PROGRAM = """
import json, subprocess, sys, tempfile
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from parrot_kernels.gpu.attention import attention_kernel as kernel
from tests.kernels.gpu.absent_gpu import usage

query, cache, constants, options = json.loads(sys.argv[1])
types = dict.fromkeys(kernel.arg_names, "*i32")
types |= dict(query="*" + query, out="*" + query, key_cache="*" + cache, value_cache="*" + cache)
types |= dict.fromkeys(("lse", "part_out", "part_lse"), "*fp32")
types |= dict.fromkeys(("scale", "value_scale", "softcap"), "fp32")
types |= dict.fromkeys(("query_row_stride", "query_head_stride", "window"), "i32")
types |= dict.fromkeys(constants, "constexpr")
aligned = [i for i, name in enumerate(kernel.arg_names) if types[name][0] == "*" or name.endswith("stride")]
source = ASTSource(
    kernel,
    types,
    {(kernel.arg_names.index(name),): value for name, value in constants.items()},
    {(i,): [["tt.divisibility", 16]] for i in aligned},
)
compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
    file.write(compiled.asm["cubin"])
    file.flush()
    machine_code = subprocess.check_output([triton.knobs.nvidia.nvdisasm.path, "-c", file.name], text=True, timeout=60)
used = usage("attention", compiled.asm["cubin"], compiled.metadata.shared)
print(json.dumps([used, compiled.asm["ptx"], machine_code]))
"""


@pytest.mark.parametrize(("query", "cache", "dim", "wide", "masked"), CASES)
def test_it_compiles_for_hopper(query: str, cache: str, dim: int, wide: int, masked: bool) -> None:
    key_bytes = {"fp8e4nv": 1, "fp32": 4}.get(cache, 2)
    shape = AttentionShape(heads=32, kv_heads=8, head_dim=dim, key_bytes=key_bytes)
    launch = AttentionLaunch.default(shape, wide)
    constants = {
        "KV_HEADS": shape.kv_heads, "FOLD": shape.fold, "DIM": dim, "NARROW": shape.narrow, "WIDE": wide,
        "KEYS": launch.keys, "HAS_SOFTCAP": masked, "HAS_WINDOW": masked, "INTERPRETED": False,
    }  # fmt: skip
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages}
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    arguments = json.dumps([query, cache, constants, options])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, arguments], env=environment, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr[-3000:]
    used, ptx, machine_code = json.loads(done.stdout)
    # All programs of the grid run at once: one that waited for another to end would begin its share too late.
    programs, threads = launch.programs_per_processor, 32 * launch.num_warps
    assert programs * (used["shared"] + 1024) <= SHARED_BYTES
    assert programs * threads * (-(-used["registers"] // 8) * 8) <= REGISTERS
    # Keys and values are fetched while the ones before are multiplied, and so are parts while the ones before are
    # merged, by loops of their own for each size of tile; parts are counted for all multiprocessors.
    fetching = [body for body in innermost_loops(machine_code) if "LDGSTS" in body]
    assert len(fetching) == (4 if wide > shape.narrow else 2)
    assert "cp.async.cg.shared.global" in ptx
    assert "atom.global.gpu.acq_rel" in ptx
    if query != "fp32":
        multiplying = [body for body in fetching if "MMA" in body]
        assert len(multiplying) == len(fetching) // 2
        assert not any(memory in body for body in multiplying for memory in ("LDL", "STL")), "registers are spilt"


def innermost_loops(machine_code: str) -> list[str]:
    """Return the bodies of the loops that hold no other: from the target of a branch backwards to the branch."""
    lines = re.findall(r"^(?:\.L_x_\d+:|\s+/\*[0-9a-f]{4,}\*/.*)$", machine_code, re.MULTILINE)
    starts = {line.rstrip(":"): i for i, line in enumerate(lines) if line.startswith(".L")}
    branches = [(i, re.search(r"\bBRA\b.*`\((\.L_x_\d+)\)", line)) for i, line in enumerate(lines)]
    loops = [(starts[to[1]], i) for i, to in branches if to is not None and starts[to[1]] < i]
    inner = [
        (start, end) for start, end in loops
        if not any(start <= other[0] and other[1] <= end for other in loops if other != (start, end))
    ]  # fmt: skip
    return ["\n".join(lines[start:end]) for start, end in inner]
