"""Building at first use, its cache, and what happens where there is nothing to build with."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from parrot_kernels import KernelBuildError, KernelInputError, backend_for
from parrot_kernels import backend as resolver
from parrot_kernels.cpu import backend as cpu_backend
from parrot_kernels.cpu import build as builder
from parrot_kernels.cpu.backend import CpuBackend
from parrot_kernels.cpu.variant import Variant, supported_variants

ROOT = Path(__file__).parents[2]
BEST = supported_variants()[0]
ONE_BUILD = "x\n" * (len(builder.SOURCES) + 1)
"""What a ``counting_compiler`` notes: each source, and the link."""


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv(resolver.ENVIRONMENT, raising=False)
    resolver._cpu_backend.cache_clear()
    resolver._compiled_or_torch.cache_clear()
    yield
    resolver._cpu_backend.cache_clear()
    resolver._compiled_or_torch.cache_clear()


def program(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def counting_compiler(folder: Path) -> Path:
    """A g++ that notes each call (but for questions for its version)."""
    return program(folder / "counting", f'[ "$1" = --version ] || echo x >> "{folder}/count"\nexec g++ "$@"')


def test_the_second_use_finds_the_first_one_s_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", str(counting_compiler(tmp_path)))
    first = builder.build(BEST)
    assert builder.build(BEST) == first
    assert (tmp_path / "count").read_text() == ONE_BUILD
    assert first.parent == tmp_path / "cache" / "parrot_mq" / "kernels"
    assert [path for path in first.parent.iterdir() if path.is_dir()] == []
    assert CpuBackend().variant is BEST


def test_other_sources_flags_or_compilers_are_another_library(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [builder._key(["g++"], variant, []) for variant in Variant]
    keys.append(builder._key(["g++", "-g"], BEST, []))
    keys.append(builder._key(["g++"], BEST, ["/somewhere/libgomp.so.1"]))
    monkeypatch.setattr(builder, "SOURCES", ["attention.cpp"])
    keys.append(builder._key(["g++"], BEST, []))
    assert len(set(keys)) == len(keys)


def test_two_processes_build_once(tmp_path: Path) -> None:
    environment = {**os.environ, "CXX": str(counting_compiler(tmp_path)), "PYTHONPATH": str(ROOT / "kernels")}
    script = "from parrot_kernels.cpu.backend import CpuBackend; print(CpuBackend().variant.value)"
    running = [
        subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=100)[0] for process in running]
    assert outputs == [f"{BEST.value}\n"] * 2
    assert (tmp_path / "count").read_text() == ONE_BUILD


def test_no_compiler_means_torch_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with caplog.at_level(logging.WARNING):
        assert backend_for("cpu").name == backend_for("cpu").name == "torch"
    assert len(caplog.messages) == 1
    assert "there is no C++ compiler g++: install g++" in caplog.messages[0]
    assert "\n" not in caplog.messages[0]


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ('[ "$1" = --version ] && exit 0; echo "a.cpp:1: error: nonsense" >&2; exit 1', "a.cpp:1: error: nonsense"),
        ("exit 3", "failed with status 3"),
        ("while [ $# -gt 1 ]; do shift; done; echo rubbish > $1", "do not load"),
    ],
)
def test_a_broken_compiler_means_torch_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, script: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CXX", str(program(tmp_path / "broken", script)))
    with caplog.at_level(logging.WARNING):
        assert backend_for("cpu").name == "torch"
    assert says in caplog.text
    monkeypatch.setenv(resolver.ENVIRONMENT, "cpu")
    with pytest.raises(KernelBuildError, match=says):
        backend_for("cpu")


def test_a_compiler_that_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "noformat").write_bytes(b"\x00\x01")
    (tmp_path / "noformat").chmod(0o755)
    monkeypatch.setenv("CXX", str(tmp_path / "noformat"))
    with pytest.raises(KernelBuildError, match="did not run"):
        builder.build(BEST)


def test_the_environment_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(resolver.ENVIRONMENT, "torch")
    assert backend_for("cpu").name == "torch"
    monkeypatch.setenv(resolver.ENVIRONMENT, "cpu")
    assert backend_for("cpu").name == "cpu"
    with pytest.raises(KernelInputError, match="no backend for cuda"):
        backend_for("cuda")
    monkeypatch.setenv(resolver.ENVIRONMENT, "fortran")
    with pytest.raises(KernelInputError, match="PARROT_MQ_KERNELS=fortran"):
        backend_for("cpu")
    monkeypatch.delenv(resolver.ENVIRONMENT)
    assert backend_for("cpu").name == "cpu"
    assert backend_for(torch.device("meta")).name == "torch"


def test_a_cache_that_cannot_be_written_or_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder.tempfile, "gettempdir", lambda: str(tmp_path / "temporary"))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    expected = tmp_path / "temporary" / f"parrot_mq-kernels-{os.getuid()}"
    assert builder._cache_folder() == expected
    assert expected.stat().st_mode & 0o777 == 0o700
    expected.chmod(0o777)
    with pytest.raises(KernelBuildError, match="XDG_CACHE_HOME"):
        builder._cache_folder()


def test_a_lock_that_is_held_for_ever_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "LOCK_TIMEOUT_S", 0.1)
    entered = []
    with builder._lock(tmp_path / "lock"), builder._lock(tmp_path / "lock"):
        entered.append(True)
    assert entered


def test_a_cpu_without_the_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_backend, "supported_variants", list)
    with pytest.raises(KernelBuildError, match="AVX2 or AVX-512"):
        CpuBackend()
    with pytest.raises(KernelBuildError, match="avx2"):
        CpuBackend(Variant.AVX2)
