"""Every variant of rotary scaling: the logits of transformers' code at every position the model knows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from parrot_mq.errors import ConfigError
from parrot_workers.engine.models.load import load_model
from parrot_workers.engine.step_batch import Span
from tests.engine.conftest import randomize
from tests.engine.families import VOCAB_SIZE, llama, phi3
from tests.engine.test_models_families import make_runner

_LONG = {"short_factor": [1.0, 1.3, 2.0, 2.5], "long_factor": [2.0, 3.0, 4.0, 5.0]}
VARIANTS: dict[str, tuple[Callable[..., Any], dict[str, Any], int]] = {
    "default": (llama, {"rope_theta": 500.0}, 160),
    "linear": (llama, {"rope_theta": 1e4, "factor": 2.5}, 160),
    "dynamic": (llama, {"rope_theta": 1e4, "factor": 2.0}, 160),
    "yarn": (llama, {"rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 40}, 160),
    "llama3": (
        llama,
        {
            "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        160,
    ),
    "longrope": (
        phi3,
        {"rope_theta": 1e4, "partial_rotary_factor": 1.0, **_LONG, "original_max_position_embeddings": 96},
        96,
    ),
}  # fmt: skip


@pytest.mark.parametrize("rope_type", VARIANTS)
@pytest.mark.parametrize("path", ["fast", "general"])
def test_rotary_variants(tmp_path: Path, rope_type: str, path: str) -> None:
    build, parameters, max_len = VARIANTS[rope_type]
    more = {name: value for name, value in parameters.items() if name == "original_max_position_embeddings"}
    model = randomize(build(rope_parameters={"rope_type": rope_type, **parameters}, **more), seed=3).eval()
    model.save_pretrained(tmp_path)
    ids = [(i * 31 + 5) % VOCAB_SIZE for i in range(max_len)]
    with torch.inference_mode():
        wanted = model(torch.tensor([ids])).logits[0]
    runner = make_runner(tmp_path, path)
    assert runner.model.max_len == max_len
    runner.verify()
    torch.testing.assert_close(runner.run([Span(ids, 0, max_len, range(10))]), wanted, rtol=2e-4, atol=2e-4)


def test_a_variant_that_nobody_knows_is_left_to_transformers(tmp_path: Path) -> None:
    parameters = {"rope_type": "proportional", "rope_theta": 1e4}
    try:
        model = llama(rope_parameters=parameters)
    except (KeyError, ValueError):  # a transformers that does not know it either
        return
    model.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="rotary positions default, dynamic"):
        load_model(str(tmp_path), device=torch.device("cpu"), path="fast")


def test_tables_hold_what_the_engine_runs(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path)
    model = load_model(str(tmp_path), device=torch.device("cpu"), path="fast", max_model_len=50)
    assert model.max_len == 160
    assert model.network.cos.shape == (50, 4)
    assert transformers.AutoConfig.from_pretrained(tmp_path).max_position_embeddings == 160
