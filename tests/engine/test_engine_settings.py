"""One definition of an engine's settings, however it is given."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from parrot_mq.errors import ConfigError
from parrot_workers.engine.engine import Engine
from parrot_workers.engine.engine_settings import EngineSettings
from parrot_workers.engine.step_batch import Span
from tests.engine.families import VOCAB_SIZE


def test_keywords_and_settings_make_the_same_engine(model_folder: Callable[[str], Path]) -> None:
    sizes = {"max_num_seqs": 4, "num_blocks": 20, "calibrate": False}
    folder = model_folder("llama")
    settings = EngineSettings(folder, **sizes)  # type: ignore[arg-type]
    by_keyword, by_settings = Engine(folder, **sizes), Engine(settings)
    assert by_keyword.settings == by_settings.settings == settings
    assert by_keyword.spec == by_settings.spec
    assert Engine(settings, num_blocks=30).spec == dataclasses.replace(by_settings.spec, num_blocks=30)


def test_a_setting_that_does_not_exist_is_an_error(model_folder: Callable[[str], Path]) -> None:
    with pytest.raises(TypeError, match="max_seqs"):
        Engine(model_folder("llama"), max_seqs=4)


def test_replacing_checks_again() -> None:
    settings = EngineSettings("model", max_num_seqs=8)
    with pytest.raises(ConfigError, match="at least max_num_seqs"):
        dataclasses.replace(settings, max_num_batched_tokens=4)


def test_settings_reach_another_process_unchanged() -> None:
    settings = EngineSettings("model", dtype=torch.bfloat16, tensor_parallel_size=2)
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_names(tmp_path: Path) -> None:
    assert EngineSettings(tmp_path / "small").served_name == str(tmp_path / "small")
    (tmp_path / "small").mkdir()
    assert EngineSettings(tmp_path / "small").served_name == "small"
    assert EngineSettings("org/model").served_name == "org/model"
    assert EngineSettings("org/model", name="mine").served_name == "mine"


def test_rows_of_logits_are_those_that_sample() -> None:
    settings = EngineSettings("model", max_num_seqs=32, max_num_batched_tokens=2048)
    assert settings.max_num_rows == 32 * 9
    assert dataclasses.replace(settings, speculate=False).max_num_rows == 32
    assert dataclasses.replace(settings, max_num_batched_tokens=100).max_num_rows == 100


@pytest.mark.parametrize("path", ["fast", "general"])
def test_as_many_rows_as_a_step_may_want(model_folder: Callable[[str], Path], path: str) -> None:
    engine = Engine(model_folder("llama"), path=path, max_num_seqs=4, num_blocks=40, calibrate=False, speculate=False)
    runner = engine._runner
    assert runner is not None
    full = runner.run([Span([5 + row], 0, 1, [row]) for row in range(4)])
    assert full.shape == (4, VOCAB_SIZE)
    with pytest.raises(AssertionError, match="5 rows of logits in buffers of 4"):
        runner.run([Span([5 + row], 0, 1, [row]) for row in range(5)])
