"""What a model says that it holds against what the system says that the process holds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from tests.engine.families import llama

_MEASURE = """
import gc, sys, torch
from pathlib import Path
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


def test_weights_are_accounted_for_within_five_percent(tmp_path: Path) -> None:
    sizes = {"hidden_size": 512, "num_attention_heads": 8, "head_dim": 64, "intermediate_size": 4096}
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
    assert abs(held - told) < 0.05 * told
