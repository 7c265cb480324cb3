"""Run as a program of its own: how much an engine's memory grows, beside what it says it uses. Prints JSON.

Arguments: a small model's folder, to import and start everything with; the folder of the model to measure.
"""

from __future__ import annotations

import gc
import json
import random
import sys
from pathlib import Path

import torch

from parrot_mq.messages import SamplingParams
from parrot_workers.engine.engine import Engine

MIB = 2**20


def resident_bytes() -> int:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) * 1024


def main(small: str, model: str) -> None:
    torch.set_num_threads(1)
    first = Engine(small, num_blocks=16, calibrate=False)
    first.generate("hello", SamplingParams(max_tokens=2))
    first.close()
    del first
    gc.collect()
    before = resident_bytes()
    engine = Engine(model, max_num_seqs=8, kv_memory_bytes=192 * MIB, host_kv_memory_bytes=48 * MIB, calibrate=False)
    dice = random.Random(0)
    prompts = [[0, *(dice.randrange(3, 380) for _ in range(400))] for _ in range(6)]
    engine.generate(prompts, SamplingParams(max_tokens=8, ignore_eos=True))
    started, start_use = resident_bytes() - before, engine.memory()
    assert engine._runner is not None
    assert engine._transfer is not None
    cache = engine._runner.cache
    for tensor in [*cache.keys.values(), *cache.values.values(), engine._transfer._host, engine._transfer._staged]:
        tensor.fill_(0)
    grown, use = resident_bytes() - before, engine.memory()
    print(
        json.dumps(
            {
                "started": started,
                "accounted_started": start_use.weights + start_use.touched_kv + start_use.workspace,
                "grown": grown,
                "accounted": use.total,
                "weights": use.weights,
                "kv": use.kv,
                "host_kv": use.host_kv,
            }
        )
    )


main(*sys.argv[1:])
