"""Two processes that compute one model: the tokens of one process, and errors instead of waits when one is gone."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from parrot_mq.errors import ConfigError, RankLost
from parrot_mq.messages import SamplingParams
from parrot_workers.engine import rank_process
from parrot_workers.engine.engine import Engine
from parrot_workers.engine.engine_settings import EngineSettings
from parrot_workers.engine.models.llama_shape import LlamaShape
from parrot_workers.engine.models.parallel import Shard
from parrot_workers.engine.port import PromptSegment, SequenceInput
from parrot_workers.engine.rank_command import Action, RankCommand
from parrot_workers.engine.rank_group import RankGroup
from parrot_workers.engine.step_batch import Span
from tests.engine.test_engine import drain, expected, make_prompts

MakeEngine = Callable[..., Engine]
GREEDY = SamplingParams(max_tokens=20, ignore_eos=True)


def ranks_of(engine: Engine) -> RankGroup:
    assert engine._runner is not None
    ranks = engine._runner._ranks
    assert isinstance(ranks, RankGroup)
    return ranks


# Biases of split rows, fused weights in the checkpoint, biases of queries, and tied weights.
@pytest.mark.parametrize("kind", ["llama_biased", "phi3", "qwen2", "mistral"])
def test_two_ranks_give_the_tokens_of_one(make_engine: MakeEngine, reference: Callable[[str], Any], kind: str) -> None:
    prompts = make_prompts(8, shared=35, seed=5, longest=50)
    engine = make_engine(kind, tensor_parallel_size=2, max_num_batched_tokens=24, num_blocks=12, speculate=True)
    try:
        assert [shape.num_kv_heads for shape in engine._runner.model.layers.values()] == [1, 1]  # type: ignore[union-attr]
        for output, prompt in zip(engine.generate(prompts, GREEDY), prompts, strict=True):
            assert list(output.token_ids) == expected(reference, kind, prompt)
        assert engine.stats().num_preemptions > 0
        engine.check()
    finally:
        engine.close()
    engine.close()
    assert not dist.is_initialized()


def test_a_rank_that_dies_is_an_error_and_no_wait(make_engine: MakeEngine) -> None:
    engine = make_engine("llama", tensor_parallel_size=2)
    try:
        engine.add(SequenceInput("s", (PromptSegment("hello"),), GREEDY))
        engine.step()
        [process] = ranks_of(engine)._processes
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(RankLost):
            drain(engine)
        with pytest.raises(RankLost, match="have ended"):
            engine.step()
    finally:
        engine.close()
    assert process.exitcode == -signal.SIGKILL


def test_a_step_that_fails_here_ends_the_others(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine("llama", tensor_parallel_size=2)
    try:
        engine.add(SequenceInput("s", (PromptSegment("hello"),), GREEDY))
        engine.step()
        assert engine._runner is not None

        def fail(*_: Any) -> None:
            raise MemoryError("no room")

        monkeypatch.setattr(engine._runner.model, "forward", fail)
        with pytest.raises(MemoryError):
            engine.step()
        assert not dist.is_initialized()
        with pytest.raises(RankLost, match="have ended"):
            engine.step()
    finally:
        engine.close()


def test_what_cannot_be_split_is_refused(make_engine: MakeEngine) -> None:
    with pytest.raises(ConfigError, match=r"1 key-value heads cannot be split over tensor_parallel_size=2: use 1"):
        make_engine("qwen3", tensor_parallel_size=2)
    assert not dist.is_initialized()
    with pytest.raises(ConfigError, match="the fast path computes"):
        make_engine("gpt2", tensor_parallel_size=2)
    with pytest.raises(ConfigError, match="path='auto'"):
        make_engine("llama", tensor_parallel_size=2, path="general")
    with pytest.raises(ConfigError, match="must be at least 1"):
        make_engine("llama", tensor_parallel_size=0)
    with pytest.raises(ConfigError, match="no host tier"):
        make_engine("llama", tensor_parallel_size=2, host_kv_memory_bytes=2**20)


def test_more_gpus_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="needs more GPUs"):
        RankGroup(EngineSettings("model", tensor_parallel_size=2, device="cuda:1"))


def test_one_group_a_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    with pytest.raises(ConfigError, match="one engine a process"):
        RankGroup(EngineSettings(tmp_path, tensor_parallel_size=2))


def test_commands_survive_the_wire() -> None:
    spans = [Span([5, 6, 7], 10, 2, range(3, 5)), Span([9], 0, 1, [2])]
    command = RankCommand.decode(RankCommand(Action.PROBE, spans=spans).encode())
    assert command.action is Action.PROBE
    assert list(command.spans) == [Span([5, 6, 7], 10, 0, [3, 4]), Span([9], 0, 0, [2])]
    assert RankCommand.decode(RankCommand(Action.ALLOCATE, (30, 512)).encode()) == RankCommand(
        Action.ALLOCATE, (30, 512), []
    )


@pytest.mark.parametrize("size", [1, 2, 4])
def test_parts_make_up_the_whole(size: int) -> None:
    shape = LlamaShape(100, 64, 48, 2, 8, 4, 8, 1e-5, (None, None), (True, True))
    for count, first in [(64, 0), (32, 64), (48, 96)]:
        parts = [range(1000)[Shard(rank, size).part(count, first)] for rank in range(size)]
        assert list(itertools.chain(*parts)) == list(range(first, first + count))
    own = Shard(0, size).of(shape)
    assert (own.num_heads, own.num_kv_heads, own.intermediate_size) == (8 // size, 4 // size, 48 // size)
    assert (own.hidden_size, own.vocab_size, own.head_dim) == (64, 100, 8)
    with pytest.raises(
        ConfigError, match=r"4 key-value heads cannot be split over tensor_parallel_size=8: use 1 or 2 or 4"
    ):
        Shard(0, 8).of(shape)


@pytest.mark.parametrize("hangs", [False, True])
def test_leaving_on_gpus_waits_for_nobody_who_is_gone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, hangs: bool
) -> None:
    gone, left = threading.Event(), threading.Event()

    def destroy() -> None:
        if hangs:
            gone.wait(20)
        left.set()

    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(dist, "destroy_process_group", destroy)
    monkeypatch.setattr(rank_process, "LEAVE_TIMEOUT_S", 0.1)
    with caplog.at_level(logging.WARNING):
        rank_process._leave(torch.device("cuda:1"))
    assert left.is_set() != hangs
    assert ("another rank is gone" in caplog.text) == hangs
    gone.set()
    assert left.wait(20)


@pytest.mark.parametrize(("device", "backend"), [("cpu", "gloo"), ("cuda:1", "nccl")])
def test_who_sums_on_what(monkeypatch: pytest.MonkeyPatch, device: str, backend: str) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", asked.append)
    monkeypatch.setattr(dist, "init_process_group", lambda name, **more: asked.append((name, more["device_id"])))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    settings = rank_process.RankSettings(EngineSettings("model", device=device, tensor_parallel_size=2), 1, "/nowhere")
    with rank_process.joined(settings, Shard(1, 2)):
        pass
    gpu = torch.device("cuda:2")
    assert asked[:2] == ([gpu, (backend, gpu)] if backend == "nccl" else [(backend, None)])
