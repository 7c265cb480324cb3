"""What runs in the next step: one token budget shared by decode and chunked prefill."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import replace

from parrot_mq.messages import CostModel, ObjectiveKind
from parrot_workers.engine.ahead_budget import tokens_ahead
from parrot_workers.engine.beside import Beside
from parrot_workers.engine.block_manager import BlockManager, CachedPrefix
from parrot_workers.engine.chunk import Chunk
from parrot_workers.engine.ngram_index import Draft
from parrot_workers.engine.prefill_ahead import PrefillAhead
from parrot_workers.engine.sequence import Sequence, SequenceStatus
from parrot_workers.engine.siblings import Siblings
from parrot_workers.engine.speculator import Speculator
from parrot_workers.engine.step_work import StepWork


class BatchScheduler:
    """Sequences that wait and that run, and the plan of each step.

    Running sequences come first: those that need one token, then those amid their prompt, each class by objective,
    rank and age; what is left of the budget admits waiting ones in the same order, never past one that does not fit.
    Beside sequences that somebody waits for, prompts of THROUGHPUT ones come in pieces that cost little (``beside``).
    Members of a task group stand side by side, and wait a step or two for each other (``siblings``). A sequence is
    admitted only if all its tokens fit the free blocks. If a running one finds no block, the youngest THROUGHPUT one,
    else the youngest, gives all its blocks back and is recomputed later. With a ``speculator``, sequences that decode
    may get drafts, as far as the budget, ``max_num_rows`` of logits (default: the budget) and free blocks go. Where
    nobody waits, the rest of the budget goes to prompts computed ahead (``ahead``), which give way to all others;
    beside running sequences as much of it as is nearly free by the ``cost`` of this engine (``ahead_budget``).
    """

    def __init__(
        self,
        blocks: BlockManager,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_num_rows: int | None = None,
        speculator: Speculator | None = None,
        cost: CostModel | None = None,
    ) -> None:
        if max_num_rows is not None and max_num_rows < max_num_seqs:
            raise ValueError(f"{max_num_rows} rows of logits are too few: each of {max_num_seqs} sequences needs one")
        self.blocks = blocks
        self.ahead = PrefillAhead(blocks)
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_num_rows = max_num_batched_tokens if max_num_rows is None else max_num_rows
        self.speculator = speculator
        self.cost = cost or CostModel()
        self.waiting: list[Sequence] = []
        """Sorted by ``Sequence.order``; preempted sequences wait here too."""
        self.running: list[Sequence] = []
        """Sorted by ``Sequence.order``."""
        self.siblings = Siblings()
        self.num_preemptions = 0
        self.num_cached_tokens = 0
        """Prompt tokens of all sequences that were found in the prefix cache when they were first admitted."""

    def __iter__(self) -> Iterator[Sequence]:
        """Go through every sequence that is not finished."""
        yield from self.running
        yield from self.waiting
        yield from self.ahead

    def add(self, sequence: Sequence) -> None:
        """Let ``sequence`` wait for its turn."""
        self.siblings.come(sequence)
        bisect.insort(self.waiting, sequence, key=_order)

    def remove(self, sequence: Sequence) -> None:
        """Take ``sequence`` out, wherever it is, and its blocks back."""
        if sequence in self.ahead:
            self.ahead.remove(sequence)
            return
        (self.running if sequence.status is SequenceStatus.RUNNING else self.waiting).remove(sequence)
        self.siblings.leave(sequence)
        self.blocks.release(sequence)
        sequence.status = SequenceStatus.FINISHED

    def set_objective(self, sequence: Sequence, objective: ObjectiveKind) -> None:
        """Move ``sequence`` to the place that another objective gives it; one computed ahead stays where it is."""
        if sequence in self.ahead:
            return
        queue = self.running if sequence.status is SequenceStatus.RUNNING else self.waiting
        queue.remove(sequence)
        sequence.objective = objective
        bisect.insort(queue, sequence, key=_order)

    def plan(self) -> list[Chunk]:
        """Return the next step's chunks, blocks allotted: at most one per sequence, within the token budget.

        Decoding sequences come first. The chunks' full blocks are published: the caller must compute all of them, or
        call ``restart``.
        """
        self.siblings.begin_plan()
        granted: list[tuple[Sequence, int]] = []
        num_preemptions = self.num_preemptions
        budget, beside = self.max_num_batched_tokens, Beside(self.cost, urgent=any(map(_is_waited_for, self.running)))
        for sequence in sorted(self.running, key=_needs_more_than_one):
            if budget == 0:
                break
            if sequence.status is not SequenceStatus.RUNNING:
                continue
            num_tokens = min(sequence.num_uncomputed_tokens, budget)
            if _needs_more_than_one(sequence):
                num_tokens = beside.take(sequence.objective, num_tokens)
            if num_tokens and self._make_room(sequence, sequence.num_computed_tokens + num_tokens):
                budget -= num_tokens
                granted.append((sequence, num_tokens))
        # Only now: whoever was preempted above after its grant must not leave blocks in the cache that nobody computes.
        granted = [grant for grant in granted if grant[0].status is SequenceStatus.RUNNING]
        chunks = [self._chunk(*grant) for grant in granted]
        if self.num_preemptions > num_preemptions:
            return chunks
        admitted = self._admit(budget, beside)
        budget -= sum(chunk.num_tokens for chunk in admitted)
        num_rows = sum(chunk.num_rows for chunk in (*chunks, *admitted))
        drafts = self._draft(chunks, min(budget, self.max_num_rows - num_rows))
        budget -= sum(len(draft.token_ids) for draft in drafts.values())
        chunks = [replace(chunk, draft=drafts[i]) if i in drafts else chunk for i, chunk in enumerate(chunks)]
        chunks += admitted
        return chunks + self._compute_ahead(budget, chunks)

    def plan_behind(self, chunks: list[Chunk]) -> list[Chunk]:
        """Return the chunks of the step behind that of ``chunks``, whose tokens are still being computed, as ``plan``.

        Each sequence that goes on computes its next token, whatever it is; those that will have reached their length
        are left out. Empty if a plan that knows the tokens could do anything else: admit or preempt somebody, compute
        a prompt, verify a draft, sample by what was generated. The caller must call ``publish`` once they are known.
        """
        live = [(row, chunk) for row, chunk in enumerate(chunks) if not chunk.sequence.is_finished]
        if len(live) != len(self.running) or any(chunk.num_rows != 1 for chunk in chunks):
            return []
        going = [(row, chunk) for row, chunk in live if chunk.sequence.num_remaining_tokens > 1]
        sequences = [chunk.sequence for _, chunk in going]
        if self._may_join(len(live) - len(going)) or self._wants_tokens(sequences):
            return []
        behind = []
        for row, chunk in going:
            start = chunk.start + chunk.num_tokens
            if not self.blocks.grow(chunk.sequence, start + 1):
                return []
            behind.append(Chunk(chunk.sequence, start, 1, samples=True, sampled_row=row))
        return behind

    def publish(self, chunks: list[Chunk]) -> None:
        """Publish the full blocks of ``plan_behind``'s chunks, whose tokens are known now."""
        for chunk in chunks:
            if not chunk.sequence.is_finished:
                self.blocks.publish(chunk.sequence, chunk.start + chunk.num_tokens)

    def restart(self) -> None:
        """Forget all that was computed: every running sequence waits again, and the prefix cache is empty."""
        for sequence in list(self.running):
            self._preempt(sequence)
        self.ahead.restart()
        self.blocks.forget()

    def _may_join(self, num_leaving: int) -> bool:
        """Whether the next plan could take somebody in, beside those that run and are not leaving."""
        if len(self.running) - num_leaving == self.max_num_seqs:
            return False
        if not self.waiting:
            return len(self.ahead) > 0
        first = self.waiting[0]
        return num_leaving > 0 or len(self.ahead) > 0 or self._fits(first, self.blocks.match(first))

    def _wants_tokens(self, sequences: list[Sequence]) -> bool:
        """Whether the tokens that ``sequences`` are about to get decide what the step behind does with them."""
        if not sequences or any(sequence.is_adjusted for sequence in sequences):
            return True
        room = min(self.max_num_batched_tokens, self.max_num_rows) - len(sequences)
        # A draft continues the known tokens; where those have one, those of a token more may have it too.
        return self.speculator is not None and bool(self.speculator.choose(sequences, min(room, 1)))

    def _fits(self, sequence: Sequence, cached: CachedPrefix) -> bool:
        """Whether a waiting sequence finds the blocks that it has not ``cached``."""
        lacking = self.blocks.num_blocks_for(sequence.num_tokens) - len(cached)
        # Each running sequence may want a block soon; admitting into those would preempt at once.
        return lacking + len(self.running) <= self.blocks.num_free_after_hold(cached)

    def _admit(self, budget: int, beside: Beside) -> list[Chunk]:
        chunks = []
        was_idle, index = not self.running, 0
        while index < len(self.waiting) and budget > 0 and len(self.running) < self.max_num_seqs:
            sequence = self.waiting[index]
            if not beside.admits(sequence.objective):
                break
            if not was_idle and self.siblings.holds(sequence):
                index += 1
                continue
            cached = self.blocks.match(sequence)
            if not self._fits(sequence, cached):
                if self.ahead.give_way():
                    continue
                if self.running:
                    break
            del self.waiting[index]
            self.siblings.leave(sequence)
            self.blocks.hold(sequence, cached)
            grown = self.blocks.grow(sequence, sequence.num_tokens)
            assert grown, f"{sequence.id} was accepted although it can never fit"
            self._start(sequence, len(cached) * self.blocks.block_size)
            num_tokens = beside.take(sequence.objective, min(sequence.num_uncomputed_tokens, budget))
            budget -= num_tokens
            chunks.append(self._chunk(sequence, num_tokens))
        return chunks

    def _compute_ahead(self, budget: int, chunks: list[Chunk]) -> list[Chunk]:
        """Return a piece of a prompt to be computed ahead in the step of ``chunks``; nothing if there is none."""
        if self.waiting or len(self.running) >= self.max_num_seqs:
            return []
        sequence = self.ahead.next(budget)
        if sequence is None or not sequence.num_uncomputed_tokens:
            return []
        if chunks:
            work = StepWork.of(chunks)
            step_ms = work.total_ms(self.cost)
            computed = sequence.num_computed_tokens
            budget = tokens_ahead(self.cost, budget, computed, work.num_prefill_tokens, step_ms=step_ms)
        chunk = self._chunk(sequence, min(sequence.num_uncomputed_tokens, budget))
        return [replace(chunk, samples=False)]

    def _start(self, sequence: Sequence, num_cached_tokens: int) -> None:
        sequence.num_computed_tokens = num_cached_tokens
        if not sequence.was_admitted:
            sequence.num_cached_tokens = min(num_cached_tokens, sequence.num_prompt_tokens)
            sequence.was_admitted = True
            self.num_cached_tokens += sequence.num_cached_tokens
        sequence.status = SequenceStatus.RUNNING
        bisect.insort(self.running, sequence, key=_order)

    def _draft(self, chunks: list[Chunk], budget: int) -> dict[int, Draft]:
        """Choose drafts for those of ``chunks`` that decode, by their index; the sequences have the blocks for them."""
        decoding = [i for i, chunk in enumerate(chunks) if chunk.num_tokens == 1 and chunk.samples]
        if self.speculator is None or not decoding:
            return {}
        drafts = self.speculator.choose([chunks[i].sequence for i in decoding], budget)
        return {
            i: draft
            for i in decoding
            if (draft := drafts.get(chunks[i].sequence)) is not None
            and self.blocks.grow(chunks[i].sequence, chunks[i].sequence.num_tokens + len(draft.token_ids))
        }

    def _chunk(self, sequence: Sequence, num_tokens: int) -> Chunk:
        start = sequence.num_computed_tokens
        self.blocks.publish(sequence, start + num_tokens)
        return Chunk(sequence, start, num_tokens, samples=start + num_tokens == sequence.num_tokens)

    def _make_room(self, sequence: Sequence, num_tokens: int) -> bool:
        """Grow ``sequence`` to ``num_tokens``, preempting others if need be; False if it was preempted itself."""
        while not self.blocks.grow(sequence, num_tokens):
            if self.ahead.give_way():
                continue
            victim = max(self.running, key=_expendable)
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.blocks.release(sequence)
        sequence.num_computed_tokens = 0
        sequence.status = SequenceStatus.PREEMPTED
        self.num_preemptions += 1
        bisect.insort(self.waiting, sequence, key=_order)


def _order(sequence: Sequence) -> tuple[int, float, int, int]:
    return sequence.order


def _needs_more_than_one(sequence: Sequence) -> bool:
    return sequence.num_uncomputed_tokens > 1


def _is_waited_for(sequence: Sequence) -> bool:
    return sequence.objective is not ObjectiveKind.THROUGHPUT and not _needs_more_than_one(sequence)


def _expendable(sequence: Sequence) -> tuple[bool, int]:
    return sequence.objective is ObjectiveKind.THROUGHPUT, sequence.arrival
