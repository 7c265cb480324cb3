"""What a step costs on this machine, measured once at start-up with a few short steps."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Sequence

import torch

from parrot_kernels import BLOCK_SIZE
from parrot_mq.messages import CostModel
from parrot_workers.engine.host_tier import ReloadCost, Transfers
from parrot_workers.engine.kv_transfer import KVTransfer
from parrot_workers.engine.model_runner import ModelRunner
from parrot_workers.engine.step_batch import Span

REPEATS = 5
MEASURE_S = 0.2
"""No further repeats of a step once they have taken so long."""
PREFILL = (128, 512)
"""Tokens of the prompts that are timed; the longer only if it should take less than ``LONG_MS``."""
LONG_MS = 1000.0
MANY = 16
"""Sequences of the batches that are timed."""
LONGEST = 2048
"""Tokens of the contexts that are timed."""


def calibrate(
    runner: ModelRunner,
    *,
    max_num_seqs: int,
    max_num_tokens: int,
    max_model_len: int,
    clock: Callable[[], float] = time.perf_counter,
) -> CostModel:
    """Return the engine's cost model, in milliseconds.

    Times prefills of two lengths and one behind a cached prefix; decode steps of one and of many sequences, of short
    and of long contexts, and of many that share nearly all of a long one; and a step that does both. Of each step the
    shortest of a few repeats counts: what disturbs it only makes it longer. Overwrites blocks of the cache, so it is
    for a cache that nobody uses yet. ``clock`` tells seconds.
    """
    bench = _Bench(runner, clock)
    longest = max(2, min(max_model_len, runner.cache.num_blocks * BLOCK_SIZE, LONGEST))
    per_token_ms, per_pair_ms = _prefill(bench, max_num_tokens, longest)
    many = max(1, min(MANY, max_num_seqs, max_num_tokens, runner.cache.num_blocks // 2))
    base_ms, per_seq_ms, per_context_ms, saving = _decode(bench, many, longest)
    cost = CostModel(
        prefill_per_token_ms=per_token_ms,
        prefill_per_pair_ms=per_pair_ms,
        decode_base_ms=base_ms,
        decode_per_seq_ms=per_seq_ms,
        decode_per_context_token_ms=per_context_ms,
        shared_saving=saving,
    )
    if max_num_seqs == 1:
        return cost
    return dataclasses.replace(cost, overlap=_overlap(bench, cost, min(max_num_tokens, longest) - 1))


def calibrate_reload(transfer: KVTransfer, num_blocks: int, cost: CostModel) -> ReloadCost:
    """Return what copying blocks back from host memory costs, against computing them at the speed of ``cost``.

    Two measurements: a step that copies one block, and one that copies ``num_blocks``. Overwrites the first blocks of
    the cache with what the first slots hold, so it is for a cache that nobody uses yet.
    """
    transfer.run(Transfers(stores=tuple((i, i) for i in range(num_blocks))))
    one_ms, many_ms = _copy_ms(transfer, 1), _copy_ms(transfer, num_blocks)
    per_block_ms = max(0.0, many_ms - one_ms) / max(1, num_blocks - 1)
    return ReloadCost(
        fixed_ms=max(0.0, one_ms - per_block_ms),
        copy_block_ms=per_block_ms,
        compute_block_ms=cost.prefill_ms(BLOCK_SIZE),
    )


def _prefill(bench: _Bench, max_num_tokens: int, longest: int) -> tuple[float, float]:
    """Return the times per token and per pair.

    The difference that a cached prefix makes is all pairs; what is left of the other prefills goes to their tokens.
    """
    short, long = (max(1, min(length, max_num_tokens, longest - 1)) for length in PREFILL)
    times_ms = {short: bench.prefill_ms(short)}
    cached = (longest - short) // BLOCK_SIZE * BLOCK_SIZE
    per_pair_ms = 0.0
    if cached:
        per_pair_ms = max(0.0, bench.prefill_ms(short, cached) - times_ms[short]) / (short * cached)
    if long > short and times_ms[short] * long / short < LONG_MS:
        times_ms[long] = bench.prefill_ms(long)
    points = [((float(length),), time_ms - per_pair_ms * length**2 / 2) for length, time_ms in times_ms.items()]
    return _fitted(points)[0], per_pair_ms


def _decode(bench: _Bench, many: int, longest: int) -> tuple[float, float, float, float]:
    """Return the time of a step, of a sequence in it, and of a token of its context; and the saving where it is shared.

    The saving is what sharing takes off, as a part of what the same contexts add when nobody shares them.
    """
    short = min(BLOCK_SIZE, longest)
    long_of_many = max(short, min(longest, bench.num_blocks // many * BLOCK_SIZE))
    sizes = dict.fromkeys([(1, short), (1, longest), (many, short), (many, long_of_many)])
    times_ms = {size: bench.decode_ms(*size) for size in sizes}
    base_ms, per_seq_ms, per_context_ms = _fitted(
        [((1.0, float(count), float(count * context)), time_ms) for (count, context), time_ms in times_ms.items()]
    )
    num_shared = (long_of_many - 1) // BLOCK_SIZE
    added_ms = times_ms[many, long_of_many] - times_ms[many, short]
    saving = 0.0
    if many > 1 and num_shared and added_ms > 0:
        saved_ms = times_ms[many, long_of_many] - bench.decode_ms(many, long_of_many, num_shared)
        added_per_token_ms = added_ms / (many * (long_of_many - short))
        saving = saved_ms / (added_per_token_ms * (many - 1) * num_shared * BLOCK_SIZE)
    return base_ms, per_seq_ms, per_context_ms, min(1.0, max(0.0, saving))


def _overlap(bench: _Bench, cost: CostModel, longest: int) -> float:
    """Return the part that a step saves of what is shared, when it prefills a piece and decodes one sequence.

    The piece takes about as long to compute as the weights to read, so that what is saved is as large a part of the
    step as it can be.
    """
    num_tokens = min(PREFILL[0], (bench.num_blocks - 1) * BLOCK_SIZE, longest)
    if cost.prefill_per_token_ms:
        num_tokens = min(num_tokens, max(BLOCK_SIZE, round(cost.decode_base_ms / cost.prefill_per_token_ms)))
    hideable_ms = min(cost.decode_base_ms, cost.prefill_per_token_ms * num_tokens)
    if num_tokens < 1 or not hideable_ms:
        return 0.0
    context = min(BLOCK_SIZE, longest + 1)
    alone_ms = bench.prefill_ms(num_tokens) + bench.decode_ms(1, context)
    return min(1.0, max(0.0, (alone_ms - bench.mixed_ms(num_tokens, context)) / hideable_ms))


class _Bench:
    """Times steps of a runner."""

    def __init__(self, runner: ModelRunner, clock: Callable[[], float]) -> None:
        self._runner = runner
        self._clock = clock
        self._found_ms: dict[tuple[tuple[int, int, tuple[int, ...]], ...], float] = {}
        """Times by what was run: (tokens, tokens before them, blocks) of each span."""
        self.num_blocks = runner.cache.num_blocks

    def prefill_ms(self, num_tokens: int, num_cached: int = 0) -> float:
        """Return the time of a prefill behind so many tokens, of which nobody minds what they are."""
        blocks = range(-(-(num_cached + num_tokens) // BLOCK_SIZE))
        return self._shortest_ms([Span([0] * num_tokens, num_cached, 1, blocks)])

    def decode_ms(self, num_seqs: int, context: int, num_shared: int = 0) -> float:
        """Return the time of a decode step of sequences whose first ``num_shared`` blocks are the same."""
        own = -(-context // BLOCK_SIZE) - num_shared
        tables = (
            [*range(num_shared), *range(num_shared + i * own, num_shared + (i + 1) * own)] for i in range(num_seqs)
        )
        return self._shortest_ms([Span([0], context - 1, 1, table) for table in tables])

    def mixed_ms(self, num_tokens: int, context: int) -> float:
        """Return the time of a step that prefills so many tokens, and decodes one sequence of blocks behind theirs."""
        num_blocks = -(-num_tokens // BLOCK_SIZE)
        prefill = Span([0] * num_tokens, 0, 1, range(num_blocks))
        return self._shortest_ms([prefill, Span([0], context - 1, 1, [num_blocks])])

    def _shortest_ms(self, spans: list[Span]) -> float:
        """Return the shortest of a few runs, after one that only warms up; what was run before is not run again."""
        key = tuple((len(span.token_ids), span.start, tuple(span.block_table)) for span in spans)
        if key not in self._found_ms:
            self._found_ms[key] = self._measure_ms(spans)
        return self._found_ms[key]

    def _measure_ms(self, spans: list[Span]) -> float:
        self._run_s(spans)
        times_s = [self._run_s(spans)]
        while len(times_s) < REPEATS and sum(times_s) < MEASURE_S:
            times_s.append(self._run_s(spans))
        return 1000 * min(times_s)

    def _run_s(self, spans: list[Span]) -> float:
        start_s = self._clock()
        self._runner.run(spans).argmax(-1).tolist()
        return self._clock() - start_s


def _fitted(points: Sequence[tuple[Sequence[float], float]]) -> list[float]:
    """Return the non-negative coefficients ``x`` for which ``a . x`` is nearest to ``t`` for all ``points`` (a, t).

    Least squares of the errors relative to ``t``, by trying each choice of coefficients that are not zero, few of them
    first: what the points do not tell apart becomes zero.
    """
    times_ms = torch.tensor([max(time_ms, 1e-9) for _, time_ms in points], dtype=torch.float64)
    terms = torch.tensor([list(terms) for terms, _ in points], dtype=torch.float64) / times_ms[:, None]
    ones = torch.ones(len(points), 1, dtype=torch.float64)
    size = terms.shape[1]
    best, least = torch.zeros(size, dtype=torch.float64), math.inf
    for chosen in itertools.chain.from_iterable(itertools.combinations(range(size), n) for n in range(1, size + 1)):
        found = torch.linalg.lstsq(terms[:, chosen], ones, driver="gelsd").solution
        error = float(((terms[:, chosen] @ found - ones) ** 2).sum())
        if found.min() >= 0 and error < least - 1e-12:
            best, least = torch.zeros(size, dtype=torch.float64), error
            best[list(chosen)] = found[:, 0]
    values: list[float] = best.tolist()
    return values


def _copy_ms(transfer: KVTransfer, num_blocks: int) -> float:
    """Return the shortest of a few copies of the first slots to the first blocks."""
    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        transfer.run(Transfers(loads=tuple((i, i) for i in range(num_blocks))))
        transfer.wait()
        times.append(time.perf_counter() - start)
    return 1000 * min(times[1:])
