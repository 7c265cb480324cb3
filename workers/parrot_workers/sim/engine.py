"""The simulated engine: continuous batching, KV memory and costs, without a model."""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable

from parrot_mq.messages import CostModel, ObjectiveKind
from parrot_workers.engine.ahead_budget import tokens_ahead
from parrot_workers.engine.beside import Beside
from parrot_workers.engine.cost_correction import CostCorrection
from parrot_workers.engine.port import (
    EngineSpec,
    EngineStats,
    FinishReason,
    PromptSegment,
    SequenceInput,
    SequenceOutput,
)
from parrot_workers.engine.siblings import Siblings
from parrot_workers.sim.ahead import Ahead
from parrot_workers.sim.batch import BY_ORDER, Batch
from parrot_workers.sim.block_pool import BlockPool
from parrot_workers.sim.clock import Clock, RealClock
from parrot_workers.sim.content import content_of
from parrot_workers.sim.prompt import PromptReader, TooLong
from parrot_workers.sim.sequence import SimSequence
from parrot_workers.sim.work import StepWork, Totals


class SimEngine:
    """Runs scripts instead of a model (see ``script``), and is otherwise what the torch engine is.

    A step takes ``max_num_batched_tokens``: one of each sequence that decodes, then pieces of the prompts that have
    begun, then of those that begin: strictest objective first, then rank, then age; members of a task group side by
    side and together. Beside sequences that somebody waits for, prompts of THROUGHPUT ones come in pieces that cost
    little (``engine.beside``). What is left goes to prompts that hints name, beside others as far as it is nearly free
    (``engine.ahead_budget``). A sequence takes KV blocks for its prompt and its longest output when it is admitted, so
    nothing is ever preempted; full blocks of prompts are shared by content, and stay cached (``block_pool``).
    ``max_running_tokens`` limits the sum of prompts and longest outputs that run at once; a sequence alone may exceed
    it.

    A step costs what ``true_cost`` says, else the announced ``cost``: the prefill of uncached tokens and one decode
    step of the sequences whose prompts are done, blocks that several of them read counted as shared, less what the two
    save in one step; and at least as long as reading the weights. ``clock`` spends that time. ``on_step``, if set, is
    told of each step's work and what it took, in milliseconds.
    """

    def __init__(
        self,
        model: str = "sim",
        *,
        cost: CostModel | None = None,
        true_cost: CostModel | None = None,
        clock: Clock | None = None,
        max_num_seqs: int = 256,
        max_model_len: int = 32_768,
        max_num_batched_tokens: int = 2048,
        max_running_tokens: int = 0,
        block_size: int = 16,
        num_blocks: int = 65_536,
        enable_prefix_caching: bool = True,
        mean_output_tokens: int = 0,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spec = EngineSpec(
            model=model,
            kind="sim",
            max_num_seqs=max_num_seqs,
            max_model_len=max_model_len,
            block_size=block_size,
            num_blocks=num_blocks,
            tokenizer_digest="sim",
            cost=cost or CostModel(),
        )
        self._true_cost = true_cost or self._spec.cost
        self._costs = CostCorrection(self._spec.cost)
        self._clock = clock or RealClock()
        self._now_s = now_s
        self._max_num_batched_tokens = max_num_batched_tokens
        self._prompts = PromptReader(
            self._spec, enable_prefix_caching=enable_prefix_caching, mean_output_tokens=mean_output_tokens
        )
        self._pool = BlockPool(num_blocks)
        self._ahead = Ahead(self._pool, block_size)
        self._siblings = Siblings()
        self._batch = Batch(self._pool, self._ahead, block_size, max_running_tokens)
        self._waiting: list[SimSequence] = []
        """Sorted by ``SimSequence.order``."""
        self._unsaid: list[SequenceOutput] = []
        """What ``add`` and ``abort`` have to say: invalid and aborted sequences, forced tokens."""
        self._beside = Beside(self._spec.cost, urgent=False)
        """Of the step that is planned."""
        self._num_added = 0
        self._num_cached = 0
        self._num_generated = 0
        self.totals = Totals()
        self.on_step: Callable[[StepWork, float], None] | None = None

    @property
    def spec(self) -> EngineSpec:
        """What is fixed about it."""
        return self._spec

    def add(self, sequence: SequenceInput) -> None:
        """Queue a sequence."""
        try:
            new = self._prompts.read(sequence, self._num_added)
        except TooLong as error:
            self._end(sequence.id, FinishReason.INVALID, error.num_tokens, str(error))
            return
        self._num_added += 1
        if sequence.forced_ids and new.script.token_ids:
            self._unsaid.append(new.say_forced())
        self._siblings.come(new)
        bisect.insort(self._waiting, new, key=BY_ORDER)

    def abort(self, sequence_id: str) -> None:
        """End a sequence, or a prompt that is computed ahead; unknown ids are ignored."""
        if self._ahead.remove(sequence_id):
            return
        sequence = self._find(sequence_id)
        if sequence is None:
            return
        if sequence in self._waiting:
            self._waiting.remove(sequence)
            self._siblings.leave(sequence)
        else:
            self._batch.leave(sequence)
        self._end(sequence_id, FinishReason.ABORTED, sequence.num_prompt_tokens, "")

    def set_objective(self, sequence_id: str, objective: ObjectiveKind) -> None:
        """Move a sequence to the place that another objective gives it; unknown ids are ignored."""
        sequence = self._find(sequence_id)
        if sequence is None:
            return
        for queue in (self._waiting, self._batch.filling):
            if sequence in queue:
                queue.remove(sequence)
                sequence.objective = objective
                bisect.insort(queue, sequence, key=BY_ORDER)
                return
        sequence.objective = objective

    def prefill(self, sequence: SequenceInput) -> None:
        """Compute a prompt ahead, in what the others leave over."""
        self._ahead.add(sequence.id, self._prompts.digests(content_of(sequence.segments), sequence.salt))

    def retain(self, key: str, segments: tuple[PromptSegment, ...], salt: str, until_s: float) -> None:
        """Give the blocks of a prompt's beginning away last, until ``until_s`` of ``now_s`` or ``release``."""
        self._pool.retain(key, self._prompts.digests(content_of(segments), salt), until_s)

    def release(self, key: str) -> None:
        """Keep nothing more for ``key``; unknown ones are ignored."""
        self._pool.unretain(key)

    def step(self) -> list[SequenceOutput]:
        """Run one step, and spend the time that it takes."""
        self._pool.expire(self._now_s())
        self._siblings.begin_plan()
        batch = self._batch
        budget = self._max_num_batched_tokens - len(batch.decoding)
        pieces: list[tuple[int, int]] = []
        done: list[SimSequence] = []
        urgent = any(sequence.objective is not ObjectiveKind.THROUGHPUT for sequence in batch.decoding.values())
        self._beside = Beside(self._spec.cost, urgent=urgent)
        for sequence in batch.filling:
            budget -= self._prefill(sequence, budget, pieces, done)
        budget = self._admit(budget, pieces, done)
        num_ahead = self._compute_ahead(budget, pieces)
        work = StepWork(tuple(pieces), len(batch.decoding), batch.context_tokens, batch.shared_tokens, num_ahead)
        self._spend(work)
        outputs, self._unsaid = self._unsaid, []
        outputs += self._ahead.take_ended()
        outputs += [self._say(sequence) for sequence in batch.decode()]
        for sequence in done:
            batch.begin_to_decode(sequence)
            outputs.append(self._say(sequence))
        return outputs

    def stats(self) -> EngineStats:
        """Return a snapshot."""
        return EngineStats(
            num_running=len(self._batch),
            num_waiting=len(self._waiting),
            num_blocks=self._spec.num_blocks,
            num_free_blocks=self._pool.num_free,
            num_generated_tokens=self._num_generated,
            num_prefill_tokens=self.totals.num_prefill_tokens,
            num_cached_tokens=self._num_cached,
            num_steps=self.totals.num_steps,
            cost=self._costs.corrected,
        )

    @property
    def running(self) -> tuple[str, ...]:
        """The ids of the sequences that run."""
        return tuple(sequence.id for sequence in self._batch)

    def has_work(self) -> bool:
        """Whether ``step`` would do anything."""
        return bool(len(self._batch) or self._waiting or self._unsaid or len(self._ahead))

    def check(self) -> None:
        """Raise AssertionError if the books do not agree with the sequences that run."""
        self._batch.check()

    def close(self) -> None:
        """Forget everything."""
        for sequence in [*self._batch]:
            self._batch.leave(sequence)
        self._ahead.clear()
        self._siblings = Siblings()
        self._waiting.clear()
        self._unsaid.clear()

    def _find(self, sequence_id: str) -> SimSequence | None:
        return self._batch.find(sequence_id) or next(
            (sequence for sequence in self._waiting if sequence.id == sequence_id), None
        )

    def _end(self, sequence_id: str, finish: FinishReason, num_prompt_tokens: int, error: str) -> None:
        self._unsaid.append(
            SequenceOutput(sequence_id, finish=finish, num_prompt_tokens=num_prompt_tokens, error=error)
        )

    def _admit(self, budget: int, pieces: list[tuple[int, int]], done: list[SimSequence]) -> int:
        """Admit what waits; returns what is left of the budget."""
        was_idle, index = not len(self._batch), 0
        while index < len(self._waiting) and budget > 0 and len(self._batch) < self._spec.max_num_seqs:
            sequence = self._waiting[index]
            if not was_idle and self._siblings.holds(sequence):
                index += 1
                continue
            if not self._beside.admits(sequence.objective) or not self._batch.fits(sequence):
                break
            del self._waiting[index]
            self._siblings.leave(sequence)
            self._batch.admit(sequence)
            self._num_cached += sequence.num_cached
            budget -= self._prefill(sequence, budget, pieces, done)
        return budget

    def _prefill(
        self, sequence: SimSequence, budget: int, pieces: list[tuple[int, int]], done: list[SimSequence]
    ) -> int:
        """Compute a piece of a prompt; returns its tokens."""
        budget = self._beside.take(sequence.objective, max(0, min(budget, sequence.num_to_prefill)))
        num_tokens, start = self._batch.prefill(sequence, budget)
        if num_tokens:
            pieces.append((num_tokens, start))
            if not sequence.num_to_prefill:
                done.append(sequence)
        return num_tokens

    def _compute_ahead(self, budget: int, pieces: list[tuple[int, int]]) -> int:
        batch = self._batch
        if not len(self._ahead) or self._waiting or len(batch) >= self._spec.max_num_seqs:
            return 0
        if len(batch):
            step = StepWork(tuple(pieces), len(batch.decoding), batch.context_tokens, batch.shared_tokens)
            cost = self._spec.cost
            budget = tokens_ahead(
                cost, budget, self._ahead.num_computed, step.num_prefill_tokens, step_ms=step.total_ms(cost)
            )
        num_tokens, start = self._ahead.compute(budget)
        if num_tokens:
            pieces.append((num_tokens, start))
        return num_tokens

    def _spend(self, work: StepWork) -> None:
        took_ms, announced = work.total_ms(self._true_cost), self._spec.cost
        self._costs.observe(
            work.prefill_ms(announced),
            work.decode_ms(announced),
            took_ms,
            num_prefill_tokens=work.num_prefill_tokens,
        )
        self.totals.add(work, took_ms, self._true_cost)
        if self.on_step is not None:
            self.on_step(work, took_ms)
        self._clock.spend(took_ms)

    def _say(self, sequence: SimSequence) -> SequenceOutput:
        before = sequence.num_done
        output = sequence.say()
        self._num_generated += sequence.num_done - before
        if output.finish is not None:
            self._batch.leave(sequence)
            self._pool.cache(self._prompts.digests_with_output(sequence))
        return output
