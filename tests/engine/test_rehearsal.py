"""What steps take of a device's memory, found out before the cache is made; and the devices of an engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from parrot_mq.errors import ConfigError
from parrot_mq.messages import SamplingParams
from parrot_workers.engine import assembly, memory, rehearsal
from parrot_workers.engine.engine import Engine
from parrot_workers.engine.engine_settings import EngineSettings
from parrot_workers.engine.model_runner import ModelRunner
from parrot_workers.engine.models.load import load_model
from parrot_workers.engine.rehearsal import largest_step, step_bytes

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
MIB = 2**20


@pytest.mark.parametrize(
    ("tokens", "rows", "seqs", "longest"), [(512, 288, 32, 8192), (33, 7, 7, 40), (100, 1, 1, 30), (5, 5, 5, 2)]
)
def test_the_largest_step(tokens: int, rows: int, seqs: int, longest: int) -> None:
    spans = largest_step(tokens, rows, seqs, longest)
    assert sum(len(span.token_ids) for span in spans) == tokens
    assert sum(span.num_rows for span in spans) == rows
    assert all(1 <= len(span.token_ids) <= longest and span.num_rows <= len(span.token_ids) for span in spans)
    blocks = [block for span in spans for block in span.block_table]
    assert blocks == list(range(len(blocks)))
    assert all(len(span.block_table) == -(-len(span.token_ids) // 16) for span in spans)


class FakeDevice:
    """Has ``free`` bytes. A runner takes those of its cache and ``captured``, its step ``computed``."""

    def __init__(self, folder: Path, settings: EngineSettings) -> None:
        self.free, self.captured, self.computed = 1000 * MIB, 30 * MIB, 50 * MIB
        self.model = load_model(str(folder), device=CPU)
        self.settings = settings
        self.block_bytes = memory.block_bytes(self.model.layers.values(), self.model.dtype)
        self.steps: list[int] = []

    def make_runner(self, num_blocks: int) -> ModelRunner:
        runner = assembly._runner(self.settings, self.model, None, num_blocks)
        self.free -= num_blocks * self.block_bytes + self.captured
        run = runner.run

        def run_and_take(spans: list[object]) -> torch.Tensor:
            self.steps.append(sum(len(span.token_ids) for span in spans))  # type: ignore[attr-defined]
            self.free -= self.computed
            return run(spans)  # type: ignore[arg-type]

        runner.run = run_and_take  # type: ignore[assignment, method-assign]
        return runner


@pytest.fixture
def fake(model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> FakeDevice:
    folder = model_folder("llama")
    made = FakeDevice(folder, EngineSettings(folder, max_num_seqs=4, max_num_batched_tokens=70))
    monkeypatch.setattr(rehearsal, "device_available_bytes", lambda place: made.free)
    return made


def test_all_but_the_cache_is_counted(fake: FakeDevice) -> None:
    taken = step_bytes(fake.settings, fake.make_runner, block_bytes=fake.block_bytes, max_model_len=160)
    assert taken == fake.captured + fake.computed
    assert fake.steps == [70]


def test_a_step_that_does_not_fit_says_what_to_lower(fake: FakeDevice) -> None:
    def fail(num_blocks: int) -> ModelRunner:
        raise torch.OutOfMemoryError("tried to allocate")

    with pytest.raises(ConfigError, match=r"a step of 70 tokens does not fit .*lower max_num_batched_tokens"):
        step_bytes(fake.settings, fail, block_bytes=1, max_model_len=160)


def test_the_cache_gets_the_share_less_what_steps_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "device_available_bytes", lambda device: 1000 * MIB)
    many = {"max_num_tokens": 10**9}
    assert memory.num_blocks(MIB, None, CUDA, **many) == 900
    assert memory.num_blocks(MIB, None, CUDA, share=0.5, **many) == 500
    assert memory.num_blocks(MIB, None, CUDA, share=0.5, step_bytes=80 * MIB, **many) == 420
    assert memory.num_blocks(MIB, None, CPU, share=0.1, **many) == 100
    with pytest.raises(ConfigError, match=r"of which steps take 500, .* raise memory_share"):
        memory.num_blocks(MIB, None, CUDA, share=0.5, step_bytes=500 * MIB, **many)


def test_the_share_is_a_setting(model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 2 * MIB)
    blocks = [
        Engine(model_folder("llama"), memory_share=share, calibrate=False).spec.num_blocks for share in (0.5, 0.25)
    ]
    assert blocks[0] == pytest.approx(2 * blocks[1], abs=1)
    for share in (0, 1.1, -0.5):
        with pytest.raises(ConfigError, match="memory_share"):
            EngineSettings("model", memory_share=share)


def test_an_engine_that_sizes_itself(model_folder: Callable[[str], Path], device: torch.device) -> None:
    free = memory.device_available_bytes(device)
    engine = Engine(model_folder("llama_64"), device=str(device), max_num_seqs=4, memory_share=0.1, calibrate=False)
    [output] = engine.generate([[0, 5, 6, 7]], SamplingParams(max_tokens=3, ignore_eos=True))
    assert len(output.token_ids) == 3
    assert 0 < engine.memory().kv + engine.memory().workspace < 0.1 * free + 64 * MIB
    engine.close()


def test_each_rank_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    settings = EngineSettings("model", device="cuda:1", tensor_parallel_size=2)
    assert [settings.rank_place(rank) for rank in range(2)] == [torch.device("cuda:1"), torch.device("cuda:2")]
    assert EngineSettings("model", device="cuda").place == torch.device("cuda:0")
    assert EngineSettings("model", tensor_parallel_size=2).rank_place(1) == CPU
    with pytest.raises(ConfigError, match=r"tensor_parallel_size=3 needs more GPUs .* cuda:0 to cuda:2"):
        EngineSettings("model", device="cuda:1", tensor_parallel_size=3)
    with pytest.raises(ConfigError, match=r"'cuda:3' needs more GPUs than there are"):
        EngineSettings("model", device="cuda:3")
    with pytest.raises(ConfigError, match="'gpu' is none that torch knows"):
        EngineSettings("model", device="gpu")
