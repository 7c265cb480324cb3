"""The engine's loop over ready parts: a step is planned and launched (``StepPipeline``), then taken in."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from parrot_kernels import Backend
from parrot_mq.messages import ObjectiveKind, SamplingParams
from parrot_workers.engine.batch_scheduler import BatchScheduler
from parrot_workers.engine.chunk import Chunk
from parrot_workers.engine.cost_correction import CostCorrection
from parrot_workers.engine.kv_transfer import KVTransfer
from parrot_workers.engine.model_runner import ModelRunner
from parrot_workers.engine.port import (
    EngineSpec,
    EngineStats,
    FinishReason,
    PromptSegment,
    SequenceInput,
    SequenceOutput,
)
from parrot_workers.engine.prompt import InvalidSequence, PromptEncoder
from parrot_workers.engine.sequence import Sequence
from parrot_workers.engine.step_pipeline import StepInFlight, StepPipeline
from parrot_workers.engine.step_profiler import StepProfiler
from parrot_workers.engine.step_stats import Phase, StepCounts, StepStats
from parrot_workers.engine.step_work import StepWork

log = logging.getLogger(__name__)


class EngineCore:
    """Takes sequences, runs steps, says what came out: ``EnginePort`` and ``TakesHints``.

    ``on_step`` is called after each step with its statistics; ``clock`` is what the times of ``retain`` are measured
    by. One thread owns it.
    """

    def __init__(
        self,
        *,
        spec: EngineSpec,
        encoder: PromptEncoder,
        scheduler: BatchScheduler,
        runner: ModelRunner,
        kernels: Backend,
        transfer: KVTransfer | None = None,
        runs_ahead: bool = False,
        profiler: StepProfiler | None = None,
        on_step: Callable[[StepStats], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spec = spec
        self._encoder = encoder
        self._scheduler = scheduler
        self._blocks = scheduler.blocks
        self._runner: ModelRunner | None = runner
        self._transfer = transfer
        self._steps = StepPipeline(scheduler, runner, kernels, transfer, runs_ahead=runs_ahead)
        self._profiler = profiler
        self._on_step = on_step
        self._clock = clock
        self._sequences: dict[str, Sequence] = {}
        self._outputs: list[SequenceOutput] = []
        """What ``add`` and ``abort`` have to say; the next step returns it."""
        self._num_added = 0
        self._total = StepCounts()
        self._costs = CostCorrection(spec.cost)

    @property
    def spec(self) -> EngineSpec:
        """What is fixed about it."""
        return self._spec

    def add(self, sequence: SequenceInput) -> None:
        """Queue a sequence; what is wrong with it comes out of the next step as INVALID.

        Raises ValueError if a sequence of this id is still here: that is the caller's own mistake.
        """
        if sequence.id in self._sequences:
            raise ValueError(f"a sequence {sequence.id!r} is in the engine already")
        prepared = self._prepared(self._encoder.prepare, sequence)
        if prepared is None:
            return
        self._scheduler.add(prepared)
        if sequence.forced_ids:
            self._replay(prepared)

    def abort(self, sequence_id: str) -> None:
        """End a sequence; the next step says so. Unknown ids are ignored."""
        sequence = self._sequences.get(sequence_id)
        if sequence is not None:
            sequence.finish = FinishReason.ABORTED
            self._outputs.append(self._finished(sequence, (), sequence.detokenizer.flush()))

    def set_objective(self, sequence_id: str, objective: ObjectiveKind) -> None:
        """Give a sequence the place of another objective from the next step on. Unknown ids are ignored."""
        sequence = self._sequences.get(sequence_id)
        if sequence is not None:
            self._scheduler.set_objective(sequence, objective)

    def prefill(self, sequence: SequenceInput) -> None:
        """Compute a prompt's keys and values ahead: see ``TakesHints``. Unfit prompts end as INVALID."""
        if sequence.id in self._sequences:
            return
        prepared = self._prepared(self._encoder.prepare_prompt, sequence)
        if prepared is not None:
            self._scheduler.ahead.add(prepared)
            self._outputs += self._ended_ahead()

    def retain(self, key: str, segments: tuple[PromptSegment, ...], salt: str, until_s: float) -> None:
        """Keep the full cached blocks of a prompt's beginning: see ``TakesHints``. Unfit prompts are logged."""
        try:
            prompt = self._encoder.prepare_prompt(SequenceInput(key, segments, SamplingParams(), salt=salt), 0)
        except InvalidSequence as error:
            log.warning("nothing is retained for %s: %s", key, error)
        else:
            self._blocks.retain(key, prompt.token_ids, salt, until_s)

    def release(self, key: str) -> None:
        """Keep nothing more for ``key``; unknown ones are ignored."""
        self._blocks.release_hint(key)

    def step(self) -> list[SequenceOutput]:
        """Run one step and return what changed."""
        outputs, self._outputs = self._outputs, []
        self._blocks.expire_hints(self._clock())
        try:
            step = self._steps.next(traced=self._profiler is not None and self._profiler.is_recording)
            if step is None:
                return outputs + self._ended_ahead()
            work = StepWork.of(step.chunks)
            self._take_in(step, outputs)
            self._steps.publish()
        except BaseException:
            # Blocks were published that may hold nothing: recompute everything rather than serve them.
            self._steps.restart()
            self._outputs = outputs + self._ended_ahead()
            raise
        try:
            self._report(step, work)
        except BaseException:
            # Whoever watches may fail (a full disk): what came out is for the next step to say.
            self._outputs = outputs
            raise
        return outputs

    def stats(self) -> EngineStats:
        """Return a snapshot."""
        total = self._total
        return EngineStats(
            num_running=len(self._scheduler.running),
            num_waiting=len(self._scheduler.waiting),
            num_blocks=self._blocks.num_blocks,
            num_free_blocks=self._blocks.num_free_blocks,
            num_preemptions=self._scheduler.num_preemptions,
            num_generated_tokens=total.num_generated_tokens,
            num_prefill_tokens=total.num_prefill_tokens,
            num_cached_tokens=self._scheduler.num_cached_tokens,
            num_reloaded_tokens=self._blocks.num_reloaded_blocks * self._blocks.block_size,
            num_steps=total.num_steps,
            num_draft_tokens=total.num_draft_tokens,
            num_accepted_tokens=total.num_accepted_tokens,
            num_ahead_steps=total.num_ahead_steps,
            num_discarded_tokens=total.num_discarded_tokens,
            cost=self._costs.corrected,
        )

    def has_work(self) -> bool:
        """Whether ``step`` would do anything."""
        return bool(self._sequences or self._outputs or self._steps.in_flight)

    def check(self) -> None:
        """Raise AssertionError if the cache's books are wrong. Cheap enough to run whenever the engine is idle."""
        self._blocks.check(self._scheduler)

    def close(self) -> None:
        """Free the model and the cache. Idempotent; nothing can be run afterwards."""
        for sequence in list(self._sequences.values()):
            self._scheduler.remove(sequence)
        self._sequences.clear()
        self._outputs.clear()
        if self._runner is not None:
            self._runner.close()
        self._steps.close()
        self._runner = self._transfer = None
        if self._profiler is not None:
            self._profiler.close()

    def _prepared(self, prepare: Callable[[SequenceInput, int], Sequence], source: SequenceInput) -> Sequence | None:
        """Return the sequence, known from now on; None, and an output that says why, if it cannot be run."""
        self._num_added += 1
        try:
            sequence = prepare(source, self._num_added)
        except InvalidSequence as error:
            self._outputs.append(SequenceOutput(source.id, finish=FinishReason.INVALID, error=str(error)))
            return None
        self._sequences[source.id] = sequence
        return sequence

    def _take_in(self, step: StepInFlight, outputs: list[SequenceOutput]) -> None:
        """Wait for the tokens of ``step`` and take them, but not those of sequences that have ended in the meantime."""
        token_ids = step.read()
        with step.clock.measure(Phase.POSTPROCESS):
            for chunk in step.chunks:
                sampled = [next(token_ids) for _ in range(chunk.num_rows)]
                if chunk.sequence.is_finished:
                    step.counts.num_discarded_tokens += chunk.num_tokens
                    continue
                chunk.sequence.num_computed_tokens = chunk.start + chunk.num_tokens
                step.counts.count(chunk)
                if chunk.samples:
                    outputs.append(self._advance(chunk, sampled, step.counts))
            outputs += self._ended_ahead()

    def _advance(self, chunk: Chunk, token_ids: list[int], counts: StepCounts) -> SequenceOutput:
        """Take the sampled tokens as far as the draft before them was right."""
        sequence, drafted = chunk.sequence, chunk.draft.token_ids if chunk.draft else []
        taken, text = [], ""
        for depth, token_id in enumerate(token_ids):
            taken.append(token_id)
            text += sequence.append(token_id)
            if sequence.finish is not None or depth == len(drafted) or token_id != drafted[depth]:
                break
        counts.num_generated_tokens += len(taken)
        if chunk.draft is not None and self._scheduler.speculator is not None:
            counts.num_draft_tokens += len(drafted)
            counts.num_accepted_tokens += len(taken) - 1
            sequence.num_computed_tokens += len(taken) - 1
            self._scheduler.speculator.observe(chunk.draft, taken)
            self._blocks.shrink(sequence, sequence.num_tokens)
        return self._output(sequence, tuple(taken), text)

    def _report(self, step: StepInFlight, work: StepWork) -> None:
        self._total.add(step.counts)
        announced, took_ms = self._spec.cost, 1000 * sum(step.clock.seconds.values())
        self._costs.observe(
            work.prefill_ms(announced),
            work.decode_ms(announced),
            took_ms,
            num_prefill_tokens=work.num_prefill_tokens,
        )
        if self._profiler is not None:
            self._profiler.step()
        if self._on_step is not None:
            running, waiting = len(self._scheduler.running), len(self._scheduler.waiting)
            self._on_step(StepStats(running, waiting, self._blocks.num_free_blocks, step.counts, step.clock.seconds))

    def _ended_ahead(self) -> list[SequenceOutput]:
        ended = self._scheduler.ahead.take_ended()
        for sequence in ended:
            del self._sequences[sequence.id]
        return [SequenceOutput(sequence.id, finish=sequence.finish) for sequence in ended]

    def _replay(self, sequence: Sequence) -> None:
        """Take the forced ids as generated, and say so in the next step."""
        text = ""
        for token_id in sequence.source.forced_ids:
            text += sequence.append(token_id)
            if sequence.finish is not None:
                break
        self._outputs.append(self._output(sequence, tuple(sequence.output_ids), text))

    def _output(self, sequence: Sequence, token_ids: tuple[int, ...], text: str) -> SequenceOutput:
        if sequence.finish is not None:
            return self._finished(sequence, token_ids, text)
        return SequenceOutput(
            sequence.id,
            token_ids,
            text,
            num_prompt_tokens=sequence.num_prompt_tokens,
            num_cached_tokens=sequence.num_cached_tokens,
            num_output_tokens=sequence.num_output_tokens,
        )

    def _finished(self, sequence: Sequence, token_ids: tuple[int, ...], text: str) -> SequenceOutput:
        self._scheduler.remove(sequence)
        del self._sequences[sequence.id]
        return SequenceOutput(
            sequence.id,
            token_ids,
            text,
            finish=sequence.finish,
            full_text=sequence.detokenizer.text,
            full_token_ids=self._encoder.plain_ids(sequence.detokenizer.text_ids()),
            num_prompt_tokens=sequence.num_prompt_tokens,
            num_cached_tokens=sequence.num_cached_tokens,
            num_output_tokens=sequence.num_output_tokens,
        )
