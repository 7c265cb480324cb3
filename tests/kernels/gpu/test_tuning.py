"""Launches as data: those of a device are found by its name, others get the default; and they are measured."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from triton.runtime.errors import OutOfResources

from parrot_kernels.gpu import attention_tuning, tuning
from parrot_kernels.gpu import launch as launches
from parrot_kernels.gpu.attention_launch import AttentionLaunch
from parrot_kernels.gpu.attention_tuning import attention_problems
from parrot_kernels.gpu.launch import FOLDER, Launch, launch_for
from parrot_kernels.gpu.sharing_cost import AttentionShape
from parrot_kernels.gpu.tuning import SUBJECTS, tune, write

SMALL = {"rms_norm": 64, "silu_mul": 48, "rope_and_store": 16, "sampling": 300}


@pytest.fixture
def fresh_caches() -> Iterator[None]:
    cached = (launches.launch_for, launches._file_name, launches._stored)
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_the_files(path: Path) -> None:
    stored = json.loads(path.read_text())
    kernels = {subject.kernel for subject in SUBJECTS}
    if path.stem == launches.DEFAULT:
        assert stored["device"] is stored["measured_with"] is None
        assert set(stored["launches"]) == kernels
    else:
        assert path.stem == launches.slug(stored["device"])
        assert set(stored["measured_with"]) == {"torch", "triton", "cuda", "date"}
        assert set(stored["launches"]) <= {*kernels, "attention"}
    for kernel, by_size in stored["launches"].items():
        for fields in by_size.values():
            made = AttentionLaunch(**fields) if kernel == "attention" else Launch(**fields)
            assert made.num_warps in tuning.NUM_WARPS


def test_an_unseen_device_gets_the_default_of_the_next_size() -> None:
    default = json.loads((FOLDER / "default.json").read_text())["launches"]["rms_norm"]
    assert launch_for(torch.device("cpu"), "rms_norm", 300) == Launch(**default["2048"])
    assert launch_for(torch.device("cpu"), "rms_norm", 2048) == Launch(**default["2048"])
    assert launch_for(torch.device("cpu"), "rms_norm", 1 << 20) == Launch(**default["32768"])


def test_what_is_measured_is_what_a_device_of_that_name_gets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_caches: None
) -> None:
    (tmp_path / "default.json").write_text(json.dumps({"launches": {}}))
    path = write("NVIDIA H200 (test)", {"silu_mul": {"64": {"block": 32, "num_warps": 1}}}, tmp_path)
    assert path.name == "nvidia_h200_test.json"
    assert json.loads(path.read_text())["measured_with"]["torch"] == torch.__version__
    monkeypatch.setattr(launches, "FOLDER", tmp_path)
    monkeypatch.setattr(launches, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200 (test)")
    device = torch.device("cuda", 7)
    assert launch_for(device, "silu_mul", 50) == Launch(32, 1)
    # One kernel after the other.
    shape, fields = AttentionShape(8, 2, 64), {"keys": 16, "num_warps": 8, "num_stages": 3, "programs_per_processor": 1}
    launches._stored.cache_clear()
    assert write("NVIDIA H200 (test)", {"attention": {"64x2x128": fields}}, tmp_path) == path
    assert launch_for(device, "silu_mul", 50) == Launch(32, 1)
    assert AttentionLaunch.for_device(device, shape, 128) == AttentionLaunch(**fields)
    assert AttentionLaunch.for_device(device, shape, 64) == AttentionLaunch.default(shape, 64)


def test_attention_is_measured_alone_and_shared(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, small in [("HEADS", 4), ("KV_HEADS", 1), ("SEQUENCES", 2), ("OWN_KEYS", 32), ("SHARED_KEYS", 64)]:
        monkeypatch.setattr(attention_tuning, name, small)
    monkeypatch.setattr(attention_tuning, "SUFFIX_KEYS", 16)
    alone, shared, *_ = attention_problems(device, head_dims=[64], keys=[16])
    assert (alone.size, shared.size) == ("64x2x16", "64x2x32")
    ran = []

    def clock(run: Callable[[], object]) -> float:
        ran.append(run())
        return float(len(ran) % 3 + 1)

    few = [dataclasses.replace(problem, candidates=problem.candidates[:3]) for problem in (alone, shared)]
    best = tune(few, clock)
    assert best["attention"]["64x2x16"] == dataclasses.asdict(alone.candidates[2])
    for outputs in (ran[:3], ran[3:]):
        for out, _ in outputs[1:]:
            torch.testing.assert_close(out, outputs[0][0])


def test_the_fastest_launch_over_all_row_counts_is_kept(device: torch.device) -> None:
    """By a made-up clock; every candidate of every kernel runs."""
    ran: list[tuple[int, Launch]] = []

    def noted(run: Callable[[Launch], object], number: int, launch: Launch) -> None:
        run(launch)
        ran.append((number, launch))

    def clock(run: Callable[[], object]) -> float:
        run()
        number, launch = ran[-1]
        if launch.num_warps == 1:
            raise OutOfResources(2, 1, "registers")
        # The second row count prefers the other block, but less.
        times = {(0, 128): 2.0, (0, 512): 1.0, (1, 128): 3.0, (1, 512): 5.0}
        return times[number, launch.block] + launch.num_warps / 99

    problems = []
    for subject in SUBJECTS:
        small = dataclasses.replace(subject, sizes=[SMALL[subject.kernel]], rows=[1, 2], blocks=[128, 512])
        for problem in small.problems(device):
            runs = [functools.partial(noted, run, number) for number, run in enumerate(problem.runs)]
            problems.append(dataclasses.replace(problem, runs=runs))
    best = tune(problems, clock)
    assert best == {kernel: {str(size): {"block": 512, "num_warps": 2}} for kernel, size in SMALL.items()}
    assert {launch.block for _, launch in ran} == {128, 512}


def test_without_a_gpu_nothing_is_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["tuning"])
    with pytest.raises(SystemExit):
        tuning.main()
    assert "torch sees no GPU" in capsys.readouterr().err
