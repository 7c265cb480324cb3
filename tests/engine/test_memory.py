"""Memory: what an engine says it uses, what it takes by default, and what costs nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from parrot_kernels.attention_plan import BLOCK_SIZE
from parrot_kernels.untouched import untouched_zeros
from parrot_mq.errors import ConfigError
from parrot_mq.messages import SamplingParams
from parrot_workers.engine import memory
from parrot_workers.engine.available_memory import available_bytes
from parrot_workers.engine.engine import Engine
from parrot_workers.engine.paged_cache import LayerShape
from parrot_workers.engine.port import PromptSegment, SequenceInput

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
MIB, GIB = 2**20, 2**30


@pytest.fixture(scope="module")
def large_folder(tmp_path_factory: pytest.TempPathFactory, model_folder: Callable[[str], Path]) -> Path:
    """A random float32 Llama of 112 MiB."""
    config = transformers.LlamaConfig(
        vocab_size=384, hidden_size=512, intermediate_size=1408, num_hidden_layers=10, num_attention_heads=8,
        num_key_value_heads=4, head_dim=64, max_position_embeddings=2048, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("large") / "large"
    transformers.LlamaForCausalLM(config).float().save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(model_folder("llama")).save_pretrained(folder)
    return folder


def test_what_is_accounted_is_what_the_process_grows_by(
    large_folder: Path, model_folder: Callable[[str], Path]
) -> None:
    root = Path(__file__).parents[2]
    path = os.pathsep.join(str(root / part) for part in ("", "workers", "kernels"))
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("memory_probe.py"), model_folder("llama"), large_folder],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["weights"] >= 100 * MIB
    assert seen["kv"] == pytest.approx(192 * MIB, rel=0.01)
    assert seen["host_kv"] == pytest.approx(48 * MIB, rel=0.01)
    assert seen["grown"] == pytest.approx(seen["accounted"], rel=0.05)
    # Before, only what had been written of the cache counted, and nothing of the host tier.
    assert seen["started"] == pytest.approx(seen["accounted_started"], rel=0.1)
    assert seen["started"] < seen["grown"] - 150 * MIB


def test_two_thousand_waiting_sequences_hold_no_blocks_and_little_memory(
    model_folder: Callable[[str], Path],
) -> None:
    engine = Engine(model_folder("llama"), max_num_seqs=4, num_blocks=64, calibrate=False)
    text = "The parrot repeats what the queue has said, word for word. " * 4
    engine.generate(text, SamplingParams(max_tokens=2, ignore_eos=True))
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for index in range(2004):
            engine.add(SequenceInput(str(index), (PromptSegment(f"{index} {text}"),), SamplingParams(max_tokens=16)))
        engine.step()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting) == (4, 2000)
    assert all(not sequence.block_table for sequence in engine._scheduler.waiting)
    needed = sum(len(sequence.block_table) for sequence in engine._scheduler.running)
    assert stats.num_free_blocks >= stats.num_blocks - needed
    assert (after - before) / 2000 < 8 * 1024
    engine.close()


def test_zeros_take_no_memory_until_they_are_written() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    zeros = untouched_zeros((64, 4 * MIB), torch.bfloat16, CPU)
    assert (zeros.shape, zeros.dtype, zeros.data_ptr() % 4096) == ((64, 4 * MIB), torch.bfloat16, 0)
    assert resident() - before < 64 * MIB
    zeros[3].fill_(1)
    assert float(zeros[3].float().mean()) == 1.0
    assert float(zeros[2, :100].sum()) == 0.0
    assert untouched_zeros((0, 4), torch.float32, CPU).numel() == 0


LAYER = LayerShape(num_kv_heads=2, key_dim=8, value_dim=8)
BLOCK = memory.block_bytes([LAYER, LAYER], torch.float32)


def test_bytes_of_a_block() -> None:
    assert BLOCK == 2 * BLOCK_SIZE * 2 * (8 + 8) * 4


@pytest.fixture
def available(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """``available(size)``: pretend that so many bytes are left."""
    return lambda size: monkeypatch.setattr(memory, "available_bytes", lambda: size)


def test_the_default_is_a_share_of_what_is_available(available: Callable[[int], None]) -> None:
    available(100 * BLOCK)
    assert memory.num_blocks(BLOCK, None, CPU, max_num_tokens=10**9) == 40
    assert memory.num_blocks(BLOCK, None, CPU, max_num_tokens=100) == 2 * 7
    assert memory.num_blocks(BLOCK, 90 * BLOCK + 1, CPU, max_num_tokens=10**9) == 90


def test_what_does_not_fit_is_refused(available: Callable[[int], None]) -> None:
    available(100 * MIB)
    with pytest.raises(ConfigError, match=r"kv_memory_bytes asks for 199 MiB, but only 100 MiB are available on cpu"):
        memory.num_blocks(MIB - 1, 200 * MIB, CPU, max_num_tokens=10**9)
    # Only what will be used has to fit.
    assert memory.num_blocks(MIB, 200 * MIB, CPU, max_num_tokens=BLOCK_SIZE) == 2
    with pytest.raises(ConfigError, match="holds no block"):
        memory.num_blocks(MIB, 10, CPU, max_num_tokens=10**9)
    with pytest.raises(ConfigError, match="host_kv_memory_bytes asks for 101 MiB"):
        memory.num_host_slots(MIB, 101 * MIB, CPU, num_blocks=1)
    available(MIB)
    with pytest.raises(ConfigError, match="too little for one block of 1048576 bytes beside the model"):
        memory.num_blocks(MIB, None, CPU, max_num_tokens=10**9)


def test_host_memory_by_default(available: Callable[[int], None]) -> None:
    available(100 * MIB)
    assert memory.num_host_slots(MIB, None, CPU, num_blocks=1000) == 0
    assert memory.num_host_slots(MIB, None, CUDA, num_blocks=1000) == 25
    assert memory.num_host_slots(MIB, None, CUDA, num_blocks=4) == 8
    assert memory.num_host_slots(MIB, 7 * MIB + 5, CPU, num_blocks=4) == 7


def machine(root: Path, files: dict[str, str]) -> Path:
    files = {"proc/meminfo": "MemTotal: 9 kB\nMemAvailable: 8388608 kB\n"} | files
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def version_two(path: str, limit: str, used: int, droppable: int = 0) -> dict[str, str]:
    folder = f"sys/fs/cgroup{path}"
    return {
        f"{folder}/memory.max": limit,
        f"{folder}/memory.current": str(used),
        f"{folder}/memory.stat": f"anon 1\ninactive_file {droppable}\n",
    }


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({}, 8 * GIB, id="no groups"),
        pytest.param({"proc/self/cgroup": "0::/a/b\n"} | version_two("/a/b", "max\n", GIB), 8 * GIB, id="no limit"),
        pytest.param(
            {"proc/self/cgroup": "0::/a/b\n"} | version_two("/a/b", f"{4 * GIB}\n", GIB, GIB // 2),
            3 * GIB + GIB // 2,
            id="limit, with cache that can be dropped",
        ),
        pytest.param(
            {"proc/self/cgroup": "0::/a/b\n"}
            | version_two("/a/b", f"{4 * GIB}", GIB)
            | version_two("/a", f"{2 * GIB}", GIB),
            GIB,
            id="the group above has less",
        ),
        pytest.param(
            {"proc/self/cgroup": "0::/docker/xyz\n"} | version_two("", f"{2 * GIB}", GIB), GIB, id="in a container"
        ),
        pytest.param(
            {"proc/self/cgroup": "0::/a\n"} | version_two("/a", f"{2 * GIB}", 3 * GIB), 0, id="nothing is left"
        ),
        pytest.param(
            {
                "proc/self/cgroup": "5:cpu:/a\n4:memory:/a\n0::/\n",
                "sys/fs/cgroup/memory/a/memory.limit_in_bytes": str(3 * GIB),
                "sys/fs/cgroup/memory/a/memory.usage_in_bytes": str(2 * GIB),
                "sys/fs/cgroup/memory/a/memory.stat": f"cache 1\ntotal_inactive_file {GIB}\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
            },
            2 * GIB,
            id="the first version",
        ),
    ],
)
def test_available_memory_heeds_control_groups(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    assert available_bytes(machine(tmp_path, files)) == expected


def test_available_memory_of_this_machine() -> None:
    assert 0 < available_bytes() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
