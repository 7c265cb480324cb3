"""A model's memory: what it says that it holds against what the system says, and the model that does not fit."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from parrot_mq.errors import ConfigError
from parrot_workers.engine import memory
from parrot_workers.engine.models.checkpoint import Checkpoint
from parrot_workers.engine.models.load import load_model
from tests.engine.families import llama

_MEASURE = """
import gc, sys, torch
from pathlib import Path
from parrot_workers.engine.models.checkpoint import Checkpoint
from parrot_workers.engine.models.load import load_model

def resident():
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmRSS"].split()[0]) * 1024

def load(folder):
    return load_model(folder, device=torch.device("cpu"), path="fast", dtype="float32")

small, large = sys.argv[1:]
kept = load(small)  # what is imported, built and set up once
gc.collect()
before = resident()
model = load(large)
gc.collect()
print(model.weight_bytes, resident() - before)
"""


@pytest.mark.parametrize("is_tied", [False, True])
def test_weights_are_accounted_for_within_five_percent(tmp_path: Path, is_tied: bool) -> None:
    sizes = {"hidden_size": 512, "num_attention_heads": 8, "head_dim": 64, "intermediate_size": 4096}
    if is_tied:  # a third of the model is its embedding
        sizes |= {"vocab_size": 36000, "tie_word_embeddings": True}
    for name, num_layers in [("small", 2), ("large", 6)]:
        model = llama(**sizes, num_hidden_layers=num_layers).to(torch.bfloat16)
        model.save_pretrained(tmp_path / name, max_shard_size="10MB")
    root = Path(__file__).parents[2]
    answer = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(tmp_path / "small"), str(tmp_path / "large")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(str(root / part) for part in ("", "workers", "kernels"))},
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    told, held = map(int, answer.stdout.split())
    assert told > 100 * 2**20
    assert told == pytest.approx(4 * Checkpoint(tmp_path / "large").num_elements(), rel=0.02)  # each weight once
    assert abs(held - told) < 0.05 * told


@pytest.mark.parametrize(
    ("kind", "path"), [("llama", "fast"), ("qwen3", "fast"), ("qwen3", "general"), ("gpt2", "auto")]
)
def test_a_model_that_does_not_fit_says_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, model_folder: Callable[[str], Path], kind: str, path: str
) -> None:
    cpu, folder = torch.device("cpu"), str(model_folder(kind))
    needed = 4 * Checkpoint(model_folder(kind)).num_elements()
    monkeypatch.setattr(memory, "available_bytes", lambda: needed * 3 // 4)
    message = rf"needs {needed / 2**30:.3g} GiB for its weights in float32, but .* free on cpu: use dtype='bfloat16'"
    with pytest.raises(ConfigError, match=message):
        load_model(folder, device=cpu, path=path)
    load_model(folder, device=cpu, path=path, dtype="bfloat16")
