"""Averaging checkpoints."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file

SCRIPT = Path(__file__).parents[2] / "examples" / "demo_model" / "average.py"


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("average", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def checkpoint(folder: Path, weights: list[float]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(f'"{folder.name}"')
    save_file({"w": torch.tensor(weights, dtype=torch.bfloat16)}, folder / "model.safetensors")
    return folder


def test_weights_are_averaged_in_float32_and_saved_in_their_type(tmp_path: Path, script: ModuleType) -> None:
    folders = [checkpoint(tmp_path / "a", [1.0, -2.0]), checkpoint(tmp_path / "b", [2.0, 4.0])]
    script.average(folders, tmp_path / "mean")
    mean = load_file(tmp_path / "mean" / "model.safetensors")["w"]
    assert (mean.dtype, mean.tolist()) == (torch.bfloat16, [1.5, 1.0])
    assert (tmp_path / "mean" / "config.json").read_text() == '"a"'


def test_other_models_are_refused(tmp_path: Path, script: ModuleType) -> None:
    folders = [checkpoint(tmp_path / "a", [1.0]), checkpoint(tmp_path / "b", [1.0, 2.0])]
    with pytest.raises(ValueError, match="other tensors"):
        script.average(folders, tmp_path / "mean")
    assert not (tmp_path / "mean").exists()
