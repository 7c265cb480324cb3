"""An engine whose keys and values are float8: what that costs in accuracy and saves in memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from parrot_kernels.fp8 import FP8
from parrot_mq.demo.meetings import make_meeting
from parrot_mq.demo.prompts import MAP
from parrot_mq.errors import ConfigError
from parrot_mq.messages import SamplingParams
from parrot_workers.engine.engine import Engine
from parrot_workers.engine.engine_settings import EngineSettings
from parrot_workers.engine.model_cache import measured_scales
from parrot_workers.engine.models.load import load_model
from parrot_workers.engine.port import PromptSegment, SequenceInput
from parrot_workers.engine.step_batch import Span
from parrot_workers.worker.options import DEMO_FOLDER
from tests.engine.test_engine import MakeEngine, make_prompts

CPU = torch.device("cpu")
BEFORE, AFTER = MAP.replace("{{summary}}", "").split("{{chunk}}")
MEETING = make_meeting(7, 24)
PROMPTS = [[PromptSegment(text) for text in (BEFORE, chunk, AFTER)] for chunk in MEETING.chunks]


def demo_engine(kv_dtype: str) -> Engine:
    return Engine(
        DEMO_FOLDER, kv_dtype=kv_dtype, num_blocks=400, max_num_seqs=512, calibrate=False, speculate=False
    )  # fmt: skip


def read(engine: Engine) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (logits [tokens, vocab], the tokens that follow, which of them are answers) of prompts and answers."""
    assert engine._runner is not None
    logits, following, is_answer = [], [], []
    for segments, note in zip(PROMPTS, MEETING.expected_lines, strict=True):
        source = SequenceInput("s", tuple(segments), SamplingParams())
        prompt = engine._encoder.prepare_prompt(source, 0).token_ids
        answer = engine.tokenizer.encode(note, is_first=False, is_value=True)
        ids = prompt + answer
        # In two steps, so that the second reads from the cache what the first has put there.
        for tokens, start in [(ids[:100], 0), (ids[100:-1], 100)]:
            blocks = range(-(-(start + len(tokens)) // 16))
            logits.append(engine._runner.run([Span(tokens, start, len(tokens), blocks)]).clone())
        following += ids[1:]
        is_answer += [False] * (len(prompt) - 1) + [True] * len(answer)
    return torch.cat(logits), torch.tensor(following), torch.tensor(is_answer)


def perplexity(logits: torch.Tensor, following: torch.Tensor) -> float:
    return math.exp(float(torch.nn.functional.cross_entropy(logits, following)))


def test_accuracy_on_a_trained_model() -> None:
    """What was measured with all of a meeting stands in docs/engine.md."""
    plain, following, is_answer = read(demo_engine("auto"))
    short, _, _ = read(demo_engine("fp8"))
    assert perplexity(plain[is_answer], following[is_answer]) < 1.01, "the prompts are not those that the model knows"
    assert bool((short.argmax(-1) == following)[is_answer].all())
    assert perplexity(short, following) < 1.01 * perplexity(plain, following)
    assert float((plain.argmax(-1) == short.argmax(-1)).float().mean()) > 0.95


def test_answers_of_a_trained_model() -> None:
    engine = demo_engine("fp8")
    assert engine._runner is not None
    assert {cache.dtype for cache in engine._runner.cache.keys.values()} == {FP8}
    outputs = engine.generate(PROMPTS, SamplingParams(max_tokens=60))
    right = [output.full_text.strip() == note for output, note in zip(outputs, MEETING.expected_lines, strict=True)]
    assert sum(right) >= len(right) - 1
    engine.close()


def test_it_takes_half_the_memory(make_engine: MakeEngine) -> None:
    plain, short = (make_engine("llama_64", dtype="bfloat16", kv_dtype=kv_dtype) for kv_dtype in ("auto", "fp8"))
    assert short.memory().kv * 2 == plain.memory().kv
    assert short.spec.num_blocks == plain.spec.num_blocks


@pytest.mark.parametrize(("kind", "path"), [("llama_64", "fast"), ("gpt2", "general"), ("qwen3", "general")])
def test_the_host_tier_and_every_path(make_engine: MakeEngine, kind: str, path: str) -> None:
    prompts = make_prompts(6, shared=60, seed=3)
    settings: dict[str, Any] = {"path": path, "kv_dtype": "fp8", "dtype": "float32"}
    roomy = make_engine(kind, **settings)
    tight = make_engine(kind, **settings, num_blocks=14, host_kv_memory_bytes=2**20, max_num_seqs=2)
    few = SamplingParams(max_tokens=5, ignore_eos=True)
    expected = [output.token_ids for output in roomy.generate(prompts, few)]
    for _ in range(2):
        assert [output.token_ids for output in tight.generate(prompts, few)] == expected
    tight.check()


def test_scales_hold_what_the_model_makes(model_folder: Callable[[str], Path]) -> None:
    model = load_model(str(model_folder("llama_64")), device=CPU)
    scales = measured_scales(model, 100)
    assert set(scales) == set(model.layers)
    assert all(0 < scale < 1 for pair in scales.values() for scale in pair)
    assert scales == measured_scales(model, 100)


def test_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="'fp4' is none of auto, fp8"):
        EngineSettings("model", kv_dtype="fp4")
    assert EngineSettings("model").cache_dtype(torch.float16) is torch.float16
    assert EngineSettings("model", kv_dtype="fp8").cache_dtype(torch.float16) is FP8
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(ConfigError, match=r"capability 8\.9"):
        EngineSettings("model", kv_dtype="fp8", device="cuda").cache_dtype(torch.bfloat16)
