"""Every Triton kernel compiles to machine code without a GPU: the interpreter forgives what the compiler does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
KERNELS = {"_rms_norm", "_silu_mul", "_rope_and_store", "_sample", "attention_kernel"}


def python(*arguments: str, **environment: str) -> str:
    """Run Python on this tree, not interpreting kernels; return what it prints."""
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, *arguments], env={**inherited, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=110,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    return done.stdout


@pytest.mark.parametrize("capability", [90])
def test_every_kernel_compiles(capability: int, tmp_path: Path) -> None:
    found = json.loads(python("-m", "tests.kernels.gpu.absent_gpu", str(capability), TRITON_CACHE_DIR=str(tmp_path)))
    assert {kernel["kernel"] for kernel in found["compiled"]} == KERNELS
    # Nothing is compiled again for another number of rows, nor for where they lie.
    assert found["again"] == []
    for kernel in found["compiled"]:
        # What fits no register goes to memory, by the stack. Attention's widest tiles come near that.
        assert kernel["stack"] <= (128 if kernel["kernel"] == "attention_kernel" else 0), kernel


def test_the_rest_needs_no_triton() -> None:
    program = "import sys; sys.modules['triton'] = None; import parrot_kernels as k; print(k.backend_for('cpu').name)"
    assert python("-c", program, PARROT_MQ_KERNELS="torch").strip() == "torch"
