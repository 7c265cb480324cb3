"""The simulated engine: continuous batching, KV memory and costs, without a model."""

from __future__ import annotations

import bisect
import time
from collections import Counter
from collections.abc import Callable

from parrot_mq.messages import CostModel, ObjectiveKind
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
from parrot_workers.sim.block_pool import BlockPool
from parrot_workers.sim.clock import Clock, RealClock
from parrot_workers.sim.content import BYTES_PER_TOKEN, content_of, extend_digests, ids_content
from parrot_workers.sim.script import write_script
from parrot_workers.sim.sequence import SimSequence
from parrot_workers.sim.shared_prefixes import SharedPrefixes
from parrot_workers.sim.work import StepWork, Totals

AHEAD_SHARE = 4
"""While sequences run, a step computes at most this part of its budget ahead."""


class SimEngine:
    """Runs scripts instead of a model (see ``script``), and is otherwise what the torch engine is.

    A step takes ``max_num_batched_tokens``: one of each sequence that decodes, then pieces of the prompts that have
    begun, then of those that begin: strictest objective first, then rank, then age; members of a task group side by
    side and together. What is left goes to prompts that hints name. A sequence takes KV blocks for its prompt and its
    longest output when it is admitted, so nothing is ever preempted; full blocks of prompts are shared by content, and
    stay cached (``block_pool``). ``max_running_tokens`` limits the sum of prompts and longest outputs that run at once;
    a sequence alone may exceed it.

    A step costs what ``true_cost`` says, else the announced ``cost``: the prefill of uncached tokens, plus one decode
    step of the sequences whose prompts are done, blocks that several of them read counted as shared, and at least as
    long as reading the weights. ``clock`` spends that time. ``on_step``, if set, is told of each step's work and what
    it took, in milliseconds.
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
        self._max_running_tokens = max_running_tokens
        self._enable_prefix_caching = enable_prefix_caching
        self._mean_output_tokens = mean_output_tokens
        self._pool = BlockPool(num_blocks)
        self._ahead = Ahead(self._pool, block_size)
        self._siblings = Siblings()
        self._shared = SharedPrefixes(block_size)
        self._waiting: list[SimSequence] = []
        """Sorted by ``SimSequence.order``."""
        self._filling: list[SimSequence] = []
        """Admitted, amid their prompts; sorted likewise."""
        self._decoding: dict[str, SimSequence] = {}
        self._context_tokens = 0
        """Of the sequences that decode."""
        self._running_tokens = 0
        """Prompts and longest outputs of all that were admitted."""
        self._unsaid: list[SequenceOutput] = []
        """What ``add`` and ``abort`` have to say: invalid and aborted sequences, forced tokens."""
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
        content = content_of(sequence.segments)
        num_tokens = max(1, len(content) // BYTES_PER_TOKEN)
        room = self._spec.max_model_len - num_tokens
        if room < 1:
            error = (
                f"the prompt has {num_tokens} tokens, model {self._spec.model} takes "
                f"{self._spec.max_model_len - 1}; shorten the prompt or split the input"
            )
            self._end(sequence.id, FinishReason.INVALID, num_tokens, error)
            return
        max_tokens = num_tokens + min(sequence.sampling.max_tokens, room)
        num_blocks = -(-max_tokens // self._spec.block_size)
        if num_blocks > self._spec.num_blocks:
            error = f"{num_blocks} blocks are needed, the engine has {self._spec.num_blocks}; ask for fewer max_tokens"
            self._end(sequence.id, FinishReason.INVALID, num_tokens, error)
            return
        prompt = "".join(segment.text for segment in sequence.segments)
        digests = self._digests(content, sequence.salt)
        new = SimSequence(
            source=sequence,
            content=content,
            num_prompt_tokens=num_tokens,
            max_tokens=max_tokens,
            digests=digests,
            num_private=num_blocks - len(digests),
            script=write_script(prompt, sequence.sampling, self._mean_output_tokens, room),
            place=(sequence.rank, self._num_added),
            arrival=self._num_added,
            objective=sequence.objective,
        )
        self._num_added += 1
        if sequence.forced_ids and new.script.token_ids:
            self._unsaid.append(new.say_forced())
        self._siblings.come(new)
        bisect.insort(self._waiting, new, key=_order)

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
            self._leave(sequence)
        self._end(sequence_id, FinishReason.ABORTED, sequence.num_prompt_tokens, "")

    def set_objective(self, sequence_id: str, objective: ObjectiveKind) -> None:
        """Move a sequence to the place that another objective gives it; unknown ids are ignored."""
        sequence = self._find(sequence_id)
        if sequence is None:
            return
        for queue in (self._waiting, self._filling):
            if sequence in queue:
                queue.remove(sequence)
                sequence.objective = objective
                bisect.insort(queue, sequence, key=_order)
                return
        sequence.objective = objective

    def prefill(self, sequence: SequenceInput) -> None:
        """Compute a prompt ahead, in what the others leave over."""
        self._ahead.add(sequence.id, self._digests(content_of(sequence.segments), sequence.salt))

    def retain(self, key: str, segments: tuple[PromptSegment, ...], salt: str, until_s: float) -> None:
        """Give the blocks of a prompt's beginning away last, until ``until_s`` of ``now_s`` or ``release``."""
        self._pool.retain(key, self._digests(content_of(segments), salt), until_s)

    def release(self, key: str) -> None:
        """Keep nothing more for ``key``; unknown ones are ignored."""
        self._pool.unretain(key)

    def step(self) -> list[SequenceOutput]:
        """Run one step, and spend the time that it takes."""
        self._pool.expire(self._now_s())
        self._siblings.begin_plan()
        budget = self._max_num_batched_tokens - len(self._decoding)
        prefills: list[tuple[int, int]] = []
        done: list[SimSequence] = []
        for sequence in self._filling:
            budget -= self._prefill(sequence, budget, prefills, done)
        budget = self._admit(budget, prefills, done)
        num_ahead = self._compute_ahead(budget, prefills)
        work = StepWork(tuple(prefills), len(self._decoding), self._context_tokens, self._shared.num_tokens, num_ahead)
        self._spend(work)
        outputs, self._unsaid = self._unsaid, []
        outputs += self._ahead.take_ended()
        self._context_tokens += len(self._decoding)
        outputs += [self._say(sequence) for sequence in list(self._decoding.values())]
        outputs += [self._begin_to_decode(sequence) for sequence in done]
        return outputs

    def stats(self) -> EngineStats:
        """Return a snapshot."""
        return EngineStats(
            num_running=len(self._filling) + len(self._decoding),
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
        return tuple(sequence.id for sequence in (*self._filling, *self._decoding.values()))

    def has_work(self) -> bool:
        """Whether ``step`` would do anything."""
        return bool(self._decoding or self._filling or self._waiting or self._unsaid or len(self._ahead))

    def check(self) -> None:
        """Raise AssertionError if the books do not agree with the sequences that run."""
        running = [*self._filling, *self._decoding.values()]
        held = self._ahead.held()
        for sequence in running:
            held.update(sequence.digests)
        self._pool.check(held, sum(sequence.num_private for sequence in running))
        context = sum(sequence.context for sequence in self._decoding.values())
        assert context == self._context_tokens, f"{self._context_tokens} tokens of context, sequences have {context}"
        tokens = sum(sequence.max_tokens for sequence in running)
        assert tokens == self._running_tokens, f"{self._running_tokens} tokens run, sequences have {tokens}"
        readers = Counter(digest for sequence in self._decoding.values() for digest in sequence.digests)
        shared = (readers.total() - len(readers)) * self._spec.block_size
        assert shared == self._shared.num_tokens, f"{self._shared.num_tokens} tokens are shared, not {shared}"

    def close(self) -> None:
        """Forget everything."""
        for sequence in [*self._filling, *self._decoding.values()]:
            self._leave(sequence)
        while self._ahead.give_way():
            pass
        self._ahead = Ahead(self._pool, self._spec.block_size)
        self._siblings = Siblings()
        self._waiting.clear()
        self._unsaid.clear()

    def _digests(self, content: bytes, salt: str) -> list[bytes]:
        digests: list[bytes] = []
        if self._enable_prefix_caching:
            extend_digests(digests, content, salt, self._spec.block_size)
        return digests

    def _find(self, sequence_id: str) -> SimSequence | None:
        if (decoding := self._decoding.get(sequence_id)) is not None:
            return decoding
        others = (sequence for queue in (self._filling, self._waiting) for sequence in queue)
        return next((sequence for sequence in others if sequence.id == sequence_id), None)

    def _end(self, sequence_id: str, finish: FinishReason, num_prompt_tokens: int, error: str) -> None:
        self._unsaid.append(
            SequenceOutput(sequence_id, finish=finish, num_prompt_tokens=num_prompt_tokens, error=error)
        )

    def _fits(self, sequence: SimSequence) -> bool:
        limit = self._max_running_tokens
        if limit and self._running_tokens and self._running_tokens + sequence.max_tokens > limit:
            return False
        while not self._pool.fits(sequence.digests, sequence.num_private):
            if not self._ahead.give_way():
                return False
        return True

    def _admit(self, budget: int, prefills: list[tuple[int, int]], done: list[SimSequence]) -> int:
        """Admit what waits; returns what is left of the budget."""
        was_idle, index = not (self._filling or self._decoding), 0
        while index < len(self._waiting) and budget > 0:
            if len(self._filling) + len(self._decoding) >= self._spec.max_num_seqs:
                break
            sequence = self._waiting[index]
            if not was_idle and self._siblings.holds(sequence):
                index += 1
                continue
            if not self._fits(sequence):
                break
            del self._waiting[index]
            self._siblings.leave(sequence)
            self._pool.hold(sequence.digests, sequence.num_private)
            self._running_tokens += sequence.max_tokens
            # The last token is always computed: its logits are what the first output is drawn from.
            cached = self._pool.match(sequence.digests) * self._spec.block_size
            sequence.num_computed = sequence.num_cached = min(cached, sequence.num_prompt_tokens - 1)
            self._num_cached += sequence.num_cached
            bisect.insort(self._filling, sequence, key=_order)
            budget -= self._prefill(sequence, budget, prefills, done)
        return budget

    def _prefill(
        self, sequence: SimSequence, budget: int, prefills: list[tuple[int, int]], done: list[SimSequence]
    ) -> int:
        """Compute a piece of a prompt; returns its tokens."""
        start, size = sequence.num_computed, self._spec.block_size
        part = min(budget, sequence.num_to_prefill)
        if part <= 0:
            return 0
        sequence.num_computed += part
        self._pool.computed(sequence.digests[start // size : sequence.num_computed // size])
        prefills.append((part, start))
        if not sequence.num_to_prefill:
            done.append(sequence)
        return part

    def _compute_ahead(self, budget: int, prefills: list[tuple[int, int]]) -> int:
        num_running = len(self._filling) + len(self._decoding)
        if not len(self._ahead) or self._waiting or num_running >= self._spec.max_num_seqs:
            return 0
        if num_running:
            budget = min(budget, self._max_num_batched_tokens // AHEAD_SHARE)
        num_tokens, start = self._ahead.compute(budget)
        if num_tokens:
            prefills.append((num_tokens, start))
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

    def _begin_to_decode(self, sequence: SimSequence) -> SequenceOutput:
        """The prompt is computed: say the first token."""
        self._filling.remove(sequence)
        self._decoding[sequence.id] = sequence
        self._shared.join(sequence.digests)
        self._context_tokens += sequence.context + bool(sequence.num_done < len(sequence.script.token_ids))
        return self._say(sequence)

    def _say(self, sequence: SimSequence) -> SequenceOutput:
        before = sequence.num_done
        output = sequence.say()
        self._num_generated += sequence.num_done - before
        if output.finish is not None:
            self._leave(sequence)
            self._cache_output(sequence)
        return output

    def _leave(self, sequence: SimSequence) -> None:
        """Take a running sequence out of the batch, and its blocks back."""
        if self._decoding.pop(sequence.id, None) is not None:
            self._shared.leave(sequence.digests)
            self._context_tokens -= sequence.context
        else:
            self._filling.remove(sequence)
        self._running_tokens -= sequence.max_tokens
        self._pool.release(sequence.digests, sequence.num_private)

    def _cache_output(self, sequence: SimSequence) -> None:
        """Keep what was generated in the cache, but for the last token: it was never computed with."""
        if self._enable_prefix_caching and not sequence.script.cut:
            digests = list(sequence.digests)
            output = ids_content(sequence.script.token_ids[: sequence.num_done - 1])
            extend_digests(digests, sequence.content + output, sequence.source.salt, self._spec.block_size)
            self._pool.cache(digests)


def _order(sequence: SimSequence) -> tuple[int, float, int, int]:
    return sequence.order
