"""How much memory is free, by files as the kernel writes them, and the model that does not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from parrot_mq.errors import ConfigError
from parrot_workers.engine import free_memory
from parrot_workers.engine.free_memory import free_bytes
from parrot_workers.engine.models.load import load_model

CPU = torch.device("cpu")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Give ``machine(available_kib, cgroup, files)``: what /proc and /sys say."""
    monkeypatch.setattr(free_memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(free_memory, "CGROUPS", tmp_path / "cgroup")

    def make(available_kib: int, cgroup: str | None = None, files: dict[str, str] | None = None) -> None:
        (tmp_path / "proc" / "self").mkdir(parents=True, exist_ok=True)
        meminfo = f"MemTotal:  99999999 kB\nMemFree: 5 kB\nMemAvailable:   {available_kib} kB\n"
        (tmp_path / "proc" / "meminfo").write_text(meminfo)
        if cgroup is not None:
            (tmp_path / "proc" / "self" / "cgroup").write_text(cgroup)
        for name, content in (files or {}).items():
            (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "cgroup" / name).write_text(content)

    return make


def test_without_control_groups(machine: Callable[..., None]) -> None:
    machine(1000)
    assert free_bytes(CPU) == 1000 * 1024


def test_this_machine_has_some() -> None:
    assert free_bytes(CPU) > 2**20


def test_version_2_takes_the_tightest_group_and_its_caches(machine: Callable[..., None]) -> None:
    machine(
        10**6,
        "0::/shop/engine\n",
        {
            "shop/memory.max": "5000000\n",
            "shop/memory.current": "4500000\n",
            "shop/memory.stat": "anon 1\ninactive_file 100000\n",
            "shop/engine/memory.max": "max\n",
            "shop/engine/memory.current": "4000000\n",
            "shop/engine/memory.stat": "inactive_file 1\n",
        },
    )
    assert free_bytes(CPU) == 600_000


def test_version_1(machine: Callable[..., None]) -> None:
    machine(
        10**6,
        "9:cpu,cpuacct:/x\n4:memory:/x\n0::/\n",
        {
            "memory/x/memory.limit_in_bytes": "3000000\n",
            "memory/x/memory.usage_in_bytes": "2999999\n",
            "memory/x/memory.stat": "inactive_file 7\ntotal_inactive_file 9\n",
        },
    )
    assert free_bytes(CPU) == 10


def test_a_group_over_its_limit_has_nothing(machine: Callable[..., None]) -> None:
    files = {"memory.max": "100", "memory.current": "200", "memory.stat": "inactive_file 5"}
    machine(10**6, "0::/\n", files)
    assert free_bytes(CPU) == 0


@pytest.mark.parametrize(
    ("kind", "path"), [("llama", "fast"), ("qwen3", "fast"), ("qwen3", "general"), ("gpt2", "auto")]
)
def test_a_model_that_does_not_fit_says_what_it_needs(
    machine: Callable[..., None], model_folder: Callable[[str], Path], kind: str, path: str
) -> None:
    machine(10**6)
    model = load_model(str(model_folder(kind)), device=CPU, path=path)
    tables = 2 * 160 * 8 * 4 if (kind, path) == ("qwen3", "fast") else 2 * 160 * 4 * 4 if path == "fast" else 0
    needed = model.weight_bytes - tables
    machine(needed * 3 // 4 // 1024)
    message = rf"needs {needed / 2**30:.3g} GiB for its weights in float32, but .* free on cpu: use dtype='bfloat16'"
    with pytest.raises(ConfigError, match=message):
        load_model(str(model_folder(kind)), device=CPU, path=path)
    load_model(str(model_folder(kind)), device=CPU, path=path, dtype="bfloat16")
