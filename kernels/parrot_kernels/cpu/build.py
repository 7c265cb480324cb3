"""Compile the sources beside this file into a shared library, once for each compiler, flags and sources.

Libraries are kept in ``$XDG_CACHE_HOME/parrot_mq/kernels`` (``~/.cache`` by default), or in a folder of this user's
under the temporary directory where that cannot be written. A library is put in place by renaming, so that a reader
never sees half of one; a lock keeps two processes from doing the same work.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shlex
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from parrot_kernels.cpu.variant import Variant
from parrot_kernels.errors import KernelBuildError

SOURCES = ["program.cpp", "attention.cpp", "gemm.cpp", "elementwise.cpp", "plan.cpp", "pack.cpp"]
"""The one that takes longest first: they are compiled side by side."""
HEADERS = [
    "attention.h", "gemm.h", "linear.h", "narrow.h", "noise.h", "operations.h", "panels.h", "plan.h", "program.h",
    "rows.h", "sampling.h", "simd.h", "threads.h", "tiles.h", "transpose.h", "work.h",
]  # fmt: skip
FLAGS = ["-O3", "-std=c++17", "-fPIC", "-fopenmp", "-fno-math-errno"]
COMPILE_TIMEOUT_S = 120.0
"""For all of a library."""
LOCK_TIMEOUT_S = 150.0
REMEDY = "install g++ 10 or later (Debian, Ubuntu: apt install g++), or name a compiler in CXX"

_HERE = Path(__file__).parent


def build(variant: Variant) -> Path:
    """Return the library for ``variant``, compiled now if the cache has none. Raises ``KernelBuildError``."""
    compiler = _compiler()
    link = _openmp_arguments()
    folder = _cache_folder()
    library = folder / f"{variant.value}-{_key(compiler, variant, link)}.so"
    if library.exists():
        return library
    with _lock(folder / f"{library.name}.lock"):
        if not library.exists():
            _compile(compiler, variant, link, library)
    return library


def _compiler() -> list[str]:
    command = shlex.split(os.environ.get("CXX", "")) or ["g++"]
    program = shutil.which(command[0])
    if program is None:
        raise KernelBuildError(f"there is no C++ compiler {command[0]}: {REMEDY}")
    return [program, *command[1:]]


def _openmp_arguments() -> list[str]:
    """Link the OpenMP runtime that torch has loaded: a second one would bring threads of its own."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        lines = []
    loaded = sorted({line.split(maxsplit=5)[-1] for line in lines if "libgomp" in line.rpartition("/")[2]})
    return loaded[:1]


def _key(compiler: list[str], variant: Variant, link: list[str]) -> str:
    version = _run([*compiler, "--version"], timeout_s=10.0).splitlines()[:1]
    names = [Path(path).name for path in link]
    digest = hashlib.sha256(repr([version, compiler[1:], FLAGS, variant.compiler_flags, names]).encode())
    for name in SOURCES + HEADERS:
        digest.update((_HERE / name).read_bytes())
    return digest.hexdigest()[:16]


def _compile(compiler: list[str], variant: Variant, link: list[str], library: Path) -> None:
    # A name of its own, so that a process that gave up waiting for the lock disturbs nobody.
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        objects = {name: str(Path(folder) / f"{name}.o") for name in SOURCES}
        command = [*compiler, *FLAGS, *variant.compiler_flags]
        deadline = time.monotonic() + COMPILE_TIMEOUT_S

        def compile_one(name: str) -> None:
            _run([*command, "-c", str(_HERE / name), "-o", objects[name]], timeout_s=deadline - time.monotonic())

        with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
            for _ in pool.map(compile_one, SOURCES):  # the first error ends those that have not begun
                pass
        _run([*command, "-shared", *objects.values(), *link, "-o", str(made)], timeout_s=deadline - time.monotonic())
        made.replace(library)


def _run(command: list[str], timeout_s: float) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelBuildError(f"the C++ compiler did not run ({error}): {REMEDY}") from error
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        first = next((line for line in lines if "error" in line), lines[0] if lines else "it said nothing")
        raise KernelBuildError(f"{command[0]} failed with status {done.returncode} ({first.strip()}): {REMEDY}")
    return done.stdout


def _cache_folder() -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    temporary = Path(tempfile.gettempdir()) / f"parrot_mq-kernels-{os.getuid()}"
    for folder in (base / "parrot_mq" / "kernels", temporary):
        if not folder.is_absolute():  # there is no home
            continue
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            continue
        if _is_ours(folder):
            return folder
    raise KernelBuildError("no folder to keep the compiled kernels in: set XDG_CACHE_HOME to one that you can write")


def _is_ours(folder: Path) -> bool:
    """Whether we can write ``folder`` and nobody else can: what lies there is loaded into this process."""
    status = folder.stat()
    others = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return status.st_uid == os.getuid() and not others and os.access(folder, os.W_OK)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold the lock file at ``path``; give up waiting after ``LOCK_TIMEOUT_S``, for the lock only saves work."""
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    break
                time.sleep(0.05)
        yield
