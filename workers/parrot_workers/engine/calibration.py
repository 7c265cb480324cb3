"""What a step costs on this machine, measured once at start-up with a few short steps."""

from __future__ import annotations

import time

from parrot_kernels import BLOCK_SIZE
from parrot_mq.messages import CostModel
from parrot_workers.engine.model_runner import ModelRunner
from parrot_workers.engine.step_batch import Span

REPEATS = 5


def calibrate(runner: ModelRunner, *, max_num_seqs: int, max_num_tokens: int, max_model_len: int) -> CostModel:
    """Return the engine's cost model, in milliseconds.

    Four measurements give the four numbers: a prefill, a decode of one short context, of one long context, and of many
    short ones. Overwrites blocks of the cache, so it is for a cache that nobody uses yet.
    """
    capacity = runner.cache.num_blocks * BLOCK_SIZE
    longest = max(2, min(max_model_len, capacity))
    prefill = max(1, min(128, max_num_tokens, longest - 1))
    short, long = min(16, longest), min(512, longest)
    many = max(1, min(8, max_num_seqs, max_num_tokens, capacity // (BLOCK_SIZE * 2)))
    decode_ms = _time_ms(runner, 1, 1, short)
    prefill_ms = _time_ms(runner, 1, prefill, prefill)
    per_context_ms = max(0.0, _time_ms(runner, 1, 1, long) - decode_ms) / max(1, long - short)
    many_ms = _time_ms(runner, many, 1, short)
    per_seq_ms = max(0.0, many_ms - decode_ms - (many - 1) * short * per_context_ms) / max(1, many - 1)
    return CostModel(
        prefill_per_token_ms=prefill_ms / prefill,
        decode_base_ms=max(0.0, decode_ms - per_seq_ms - short * per_context_ms),
        decode_per_seq_ms=per_seq_ms,
        decode_per_context_token_ms=per_context_ms,
    )


def _time_ms(runner: ModelRunner, num_seqs: int, num_tokens: int, context: int) -> float:
    """Return the shortest of a few steps of ``num_seqs`` sequences, ``num_tokens`` new of ``context`` each."""
    num_blocks = -(-context // BLOCK_SIZE)
    spans = [
        Span([0] * num_tokens, context - num_tokens, 1, range(i * num_blocks, (i + 1) * num_blocks))
        for i in range(num_seqs)
    ]
    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        logits = runner.run(spans)
        logits.argmax(-1).tolist()
        times.append(time.perf_counter() - start)
    return 1000 * min(times[1:])
