"""What the CPU can do, and the compiler flags that go with it."""

from __future__ import annotations

import enum
import functools
import platform
from pathlib import Path

_AVX512 = frozenset({"avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512dq"})


class Variant(enum.Enum):
    """An instruction set that the sources are written for, the best first."""

    AVX512_BF16 = "avx512_bf16"
    AVX512 = "avx512"
    AVX2 = "avx2"

    @property
    def cpu_flags(self) -> frozenset[str]:
        """Flags that a CPU must have, by the kernel's names."""
        return {
            Variant.AVX512_BF16: _AVX512 | {"avx512_bf16"},
            Variant.AVX512: _AVX512,
            Variant.AVX2: frozenset({"avx2", "fma"}),
        }[self]

    @property
    def compiler_flags(self) -> list[str]:
        """Flags for the compiler."""
        flags = [f"-m{flag.replace('_', '')}" for flag in sorted(self.cpu_flags)]
        return flags if self is Variant.AVX2 else [*flags, "-mprefer-vector-width=512"]


@functools.cache
def cpu_flags() -> frozenset[str]:
    """Return this CPU's flags; none where the system does not tell."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return frozenset()
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    lines = [line for line in text.splitlines() if line.startswith("flags")]
    return frozenset(lines[0].split(":", 1)[1].split()) if lines else frozenset()


def supported_variants() -> list[Variant]:
    """Return the variants that this CPU runs, the best first."""
    return [variant for variant in Variant if variant.cpu_flags <= cpu_flags()]
