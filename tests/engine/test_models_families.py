"""Every family on every path that computes it: the tokens of transformers' generate, the logits of its forward."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from parrot_mq.errors import ConfigError
from parrot_mq.messages import SamplingParams
from parrot_workers.engine.engine import Engine
from parrot_workers.engine.model_runner import ModelRunner
from parrot_workers.engine.models.general import GeneralModel
from parrot_workers.engine.models.llama import LlamaModel
from parrot_workers.engine.models.load import load_model
from parrot_workers.engine.paged_cache import PagedCache
from parrot_workers.engine.step_batch import Span
from tests.engine.families import FAST, GENERAL, VOCAB_SIZE
from tests.engine.test_engine import expected, make_prompts

GREEDY = SamplingParams(max_tokens=20, ignore_eos=True)
PATHS = [*((kind, "fast") for kind in FAST), *((kind, "general") for kind in {**FAST, **GENERAL})]
CPU = torch.device("cpu")
Folder = Callable[[str], Path]


def make_runner(folder: Path, path: str = "auto", dtype: str = "auto", **settings: Any) -> ModelRunner:
    model = load_model(str(folder), device=CPU, path=path, dtype=dtype)
    cache = PagedCache(model.layers, 40, model.dtype, CPU)
    return ModelRunner(model, cache, **{"max_num_tokens": 256, **settings})


@pytest.mark.parametrize(("kind", "path"), PATHS)
@pytest.mark.parametrize(
    "settings", [{"num_blocks": 400}, {"num_blocks": 12, "max_num_batched_tokens": 13}], ids=["roomy", "tight"]
)
def test_greedy_equals_transformers(
    make_engine: Callable[..., Engine],
    reference: Callable[[str], Any],
    kind: str,
    path: str,
    settings: dict[str, Any],
) -> None:
    prompts = make_prompts(8, shared=35, seed=5, longest=50)
    engine = make_engine(kind, path=path, **settings)
    for output, prompt in zip(engine.generate(prompts, GREEDY), prompts, strict=True):
        assert list(output.token_ids) == expected(reference, kind, prompt)
    stats = engine.stats()
    assert stats.num_cached_tokens > 0
    assert (stats.num_preemptions > 0) == (settings["num_blocks"] == 12)


@pytest.mark.parametrize(("kind", "path"), PATHS)
def test_logits_of_every_position(model_folder: Folder, reference: Callable[[str], Any], kind: str, path: str) -> None:
    ids = [(i * 31 + 5) % VOCAB_SIZE for i in range(100)]
    with torch.inference_mode():
        wanted = reference(kind)(torch.tensor([ids])).logits[0]
    runner = make_runner(model_folder(kind), path)
    table = list(range(20, 27))
    first = runner.run([Span(ids[:37], 0, 37, table)]).clone()
    rest = runner.run([Span(ids[37:90], 37, 0, table)])
    last = runner.run([Span(ids[90:], 90, 4, table)])
    assert rest.shape == (0, VOCAB_SIZE)
    torch.testing.assert_close(first, wanted[:37], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(last, wanted[96:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "path"), PATHS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_near(model_folder: Folder, kind: str, path: str, dtype: str) -> None:
    ids = [(i * 31 + 5) % VOCAB_SIZE for i in range(60)]
    spans = [Span(ids, 0, 60, range(4)), Span(ids[:1], 0, 1, [5])]
    runner = make_runner(model_folder(kind), path, dtype)
    runner.verify()
    half, full = runner.run(spans), make_runner(model_folder(kind), path).run(spans)
    assert half.dtype == full.dtype == torch.float32
    assert runner.model.dtype == getattr(torch, dtype)
    assert float(torch.nn.functional.cosine_similarity(half, full).min()) > 0.98


@pytest.mark.parametrize(("kind", "path"), PATHS)
@pytest.mark.parametrize("num_seqs", [1, 3])
def test_padding_changes_nothing(model_folder: Folder, kind: str, path: str, num_seqs: int) -> None:
    spans = [Span([7 + i] * (i + 1), 20, i % 2 + 1 if i else 1, [2 * i + 1, 2 * i + 2]) for i in range(num_seqs)]
    plain = make_runner(model_folder(kind), path).run(spans)
    padded = make_runner(model_folder(kind), path, buckets=[4, 16]).run(spans)
    assert plain.shape == (sum(span.num_rows for span in spans), VOCAB_SIZE)
    torch.testing.assert_close(padded, plain, rtol=1e-5, atol=1e-5)


def test_the_path_is_chosen_by_the_configuration(model_folder: Folder) -> None:
    for kind in FAST:
        assert isinstance(load_model(str(model_folder(kind)), device=CPU), LlamaModel)
    for kind in GENERAL:
        assert isinstance(load_model(str(model_folder(kind)), device=CPU), GeneralModel)
        with pytest.raises(ConfigError, match=r"the fast path computes llama.*, not"):
            load_model(str(model_folder(kind)), device=CPU, path="fast")
    with pytest.raises(ConfigError, match="none of auto, fast, general"):
        load_model(str(model_folder("llama")), device=CPU, path="slow")


@pytest.mark.parametrize("path", ["fast", "general"])
def test_what_a_model_says_of_itself(model_folder: Folder, path: str) -> None:
    model = load_model(str(model_folder("qwen3")), device=CPU, path=path)
    assert (model.vocab_size, model.max_len, model.eos_ids) == (VOCAB_SIZE, 160, {1})
    assert [(shape.num_kv_heads, shape.key_dim, shape.window) for shape in model.layers.values()] == [(1, 16, None)] * 3
    windows = [shape.window for shape in load_model(str(model_folder("qwen2")), device=CPU).layers.values()]
    assert windows == [None, 24]
