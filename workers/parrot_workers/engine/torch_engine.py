"""The engine that runs models itself, on a CPU or a GPU: step = schedule, run, sample, postprocess."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from pathlib import Path

import torch

from parrot_kernels import BLOCK_SIZE
from parrot_mq.errors import ConfigError
from parrot_mq.messages import CostModel, ObjectiveKind, SamplingParams
from parrot_workers.engine import memory, offline
from parrot_workers.engine.batch_scheduler import BatchScheduler, Chunk
from parrot_workers.engine.block_manager import BlockManager
from parrot_workers.engine.calibration import calibrate as measure
from parrot_workers.engine.model_runner import ModelRunner
from parrot_workers.engine.models.load import DEFAULT_MAX_MODEL_LEN, ModelPath, load_model
from parrot_workers.engine.offline import Prompt
from parrot_workers.engine.paged_cache import PagedCache
from parrot_workers.engine.port import EngineSpec, EngineStats, FinishReason, SequenceInput, SequenceOutput
from parrot_workers.engine.prompt import InvalidSequence, PromptEncoder, PromptLimits
from parrot_workers.engine.sampler import sample
from parrot_workers.engine.sequence import Sequence
from parrot_workers.engine.speculator import Speculator
from parrot_workers.engine.step_batch import Span
from parrot_workers.engine.step_profiler import StepProfiler
from parrot_workers.engine.step_stats import Phase, PhaseClock, StepStats
from parrot_workers.engine.tokenizer import load_tokenizer


class TorchEngine:
    """Any decoder-only model that transformers loads, with continuous batching and prefix caching.

    ``model`` is a folder or an id; ``name`` what requests call it (default: the folder's name, or the id). ``path``
    says who computes it: "fast" our own code for the Llama family, "general" transformers', "auto" what fits. The cache
    gets ``num_blocks`` blocks, or as many as ``kv_memory_bytes`` hold (default: see ``memory.budget_bytes``).
    ``max_num_batched_tokens`` bounds a step's tokens, so that a long prompt does not hold up running outputs.
    ``speculate`` lets sequences verify drafts copied from their own text where the cost model expects a gain; outputs
    are the same either way. ``calibrate`` False keeps the default cost model and starts faster. ``profile`` is a folder
    for a trace of some steps; ``on_step`` is called after each step with its statistics. Raises ConfigError, with a
    remedy, if the model or a setting is wrong. One thread owns an engine; ``torch.set_num_threads`` is process-wide.

    Alone, without a service:

        engine = TorchEngine("path/to/model")
        print(engine.generate("Once upon a time", SamplingParams(max_tokens=20))[0].full_text)
    """

    def __init__(
        self,
        model: str | Path,
        *,
        name: str = "",
        device: str = "cpu",
        dtype: str | torch.dtype = "auto",
        path: str = ModelPath.AUTO,
        max_num_seqs: int = 32,
        max_num_batched_tokens: int = 512,
        kv_memory_bytes: int | None = None,
        num_blocks: int | None = None,
        max_model_len: int | None = None,
        num_threads: int | None = None,
        enable_prefix_caching: bool = True,
        speculate: bool = True,
        calibrate: bool = True,
        profile: str | Path | None = None,
        on_step: Callable[[StepStats], None] | None = None,
    ) -> None:
        if max_num_seqs < 1 or max_num_batched_tokens < max_num_seqs:
            raise ConfigError(
                f"max_num_seqs ({max_num_seqs}) must be at least 1, and max_num_batched_tokens "
                f"({max_num_batched_tokens}) at least max_num_seqs, for each decodes a token"
            )
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        loaded = load_model(str(model), device=_device(device), dtype=dtype, path=path, max_model_len=max_model_len)
        self.tokenizer = load_tokenizer(str(model))
        max_model_len = _max_model_len(max_model_len, loaded.max_len)
        num_blocks = num_blocks or memory.num_blocks(
            list(loaded.layers.values()),
            loaded.dtype,
            BLOCK_SIZE,
            kv_memory_bytes or memory.budget_bytes(loaded.device),
            max_num_tokens=max_num_seqs * max_model_len,
        )
        self._runner: ModelRunner | None = ModelRunner(
            loaded,
            PagedCache(loaded.layers, num_blocks, loaded.dtype, loaded.device),
            max_num_tokens=max_num_batched_tokens,
        )
        self._runner.verify()
        cost = CostModel()
        if calibrate:
            cost = measure(
                self._runner,
                max_num_seqs=max_num_seqs,
                max_num_tokens=max_num_batched_tokens,
                max_model_len=max_model_len,
            )
        self._blocks = BlockManager(num_blocks, BLOCK_SIZE, enable_prefix_caching=enable_prefix_caching)
        self._speculator = Speculator(cost) if speculate else None
        self._scheduler = BatchScheduler(
            self._blocks,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            speculator=self._speculator,
        )
        eos_ids = loaded.eos_ids | ({self.tokenizer.eos_id} if self.tokenizer.eos_id is not None else set())
        self._encoder = PromptEncoder(
            self.tokenizer, PromptLimits(loaded.vocab_size, max_model_len, num_blocks, BLOCK_SIZE, eos_ids)
        )
        self._spec = EngineSpec(
            model=name or (Path(model).name if Path(model).is_dir() else str(model)),
            kind="torch",
            max_num_seqs=max_num_seqs,
            max_model_len=max_model_len,
            block_size=BLOCK_SIZE,
            num_blocks=num_blocks,
            tokenizer_digest=self.tokenizer.digest,
            cost=cost,
        )
        self._sequences: dict[str, Sequence] = {}
        self._outputs: list[SequenceOutput] = []
        """What ``add`` and ``abort`` have to say; the next step returns it."""
        self._num_added = 0
        self._num_steps = self._num_generated = self._num_prefilled = self._num_drafted = self._num_accepted = 0
        self._on_step = on_step
        self._profiler = StepProfiler(profile) if profile is not None else None

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
        self._num_added += 1
        try:
            prepared = self._encoder.prepare(sequence, self._num_added)
        except InvalidSequence as error:
            self._outputs.append(SequenceOutput(sequence.id, finish=FinishReason.INVALID, error=str(error)))
            return
        self._sequences[sequence.id] = prepared
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

    def step(self) -> list[SequenceOutput]:
        """Run one step and return what changed."""
        outputs, self._outputs = self._outputs, []
        clock = PhaseClock(traced=self._profiler is not None and self._profiler.is_recording)
        before = self.stats()
        with clock.measure(Phase.PLAN):
            chunks = self._scheduler.plan()
        if not chunks:
            return outputs
        try:
            token_ids = self._compute(chunks, clock)
        except BaseException:
            # Blocks were published that may hold nothing: recompute everything rather than serve them.
            self._scheduler.restart()
            self._outputs = outputs
            raise
        with clock.measure(Phase.POSTPROCESS):
            for chunk in chunks:
                self._account(chunk)
                if chunk.samples:
                    outputs.append(self._advance(chunk, [next(token_ids) for _ in range(chunk.num_rows)]))
        self._num_steps += 1
        if self._profiler is not None:
            self._profiler.step()
        if self._on_step is not None:
            self._on_step(self._step_stats(chunks, before, clock))
        return outputs

    def _compute(self, chunks: list[Chunk], clock: PhaseClock) -> Iterator[int]:
        """Return the tokens that the rows of ``chunks`` sample, in order."""
        assert self._runner is not None, "the engine is closed"
        with clock.measure(Phase.MODEL):
            spans = [Span(chunk.token_ids, chunk.start, chunk.num_rows, chunk.block_table) for chunk in chunks]
            logits = self._runner.run(spans)
        if not len(logits):
            return iter(())
        with clock.measure(Phase.SAMPLE):
            sequences = [chunk.sequence for chunk in chunks for _ in range(chunk.num_rows)]
            return iter(sample(logits, sequences, [depth for chunk in chunks for depth in range(chunk.num_rows)]))

    def stats(self) -> EngineStats:
        """Return a snapshot."""
        return EngineStats(
            num_running=len(self._scheduler.running),
            num_waiting=len(self._scheduler.waiting),
            num_blocks=self._blocks.num_blocks,
            num_free_blocks=self._blocks.num_free_blocks,
            num_preemptions=self._scheduler.num_preemptions,
            num_generated_tokens=self._num_generated,
            num_prefill_tokens=self._num_prefilled,
            num_cached_tokens=self._scheduler.num_cached_tokens,
            num_steps=self._num_steps,
            num_draft_tokens=self._num_drafted,
            num_accepted_tokens=self._num_accepted,
        )

    def has_work(self) -> bool:
        """Whether ``step`` would do anything."""
        return bool(self._sequences or self._outputs)

    def check(self) -> None:
        """Raise AssertionError if the cache's books are wrong. Cheap enough to run whenever the engine is idle."""
        self._blocks.check(self._scheduler)

    def close(self) -> None:
        """Free the model and the cache. Idempotent; nothing can be run afterwards."""
        for sequence in list(self._sequences.values()):
            self._scheduler.remove(sequence)
        self._sequences.clear()
        self._outputs.clear()
        self._runner = None
        if self._profiler is not None:
            self._profiler.close()

    def generate(
        self,
        prompts: str | Seq[Prompt],
        sampling: SamplingParams | Seq[SamplingParams] | None = None,
    ) -> list[SequenceOutput]:
        """Run ``prompts`` to their ends and return their last outputs, in order: ``full_text`` holds the answer.

        A prompt is text, token ids, or segments; ``sampling`` is one for all or one for each. The engine must have no
        other work. ``token_ids`` of an output are all of its tokens.
        """
        return offline.generate(self, prompts, sampling)

    def _replay(self, sequence: Sequence) -> None:
        """Take the forced ids as generated, and say so in the next step."""
        text = ""
        for token_id in sequence.source.forced_ids:
            text += sequence.append(token_id)
            if sequence.finish is not None:
                break
        self._outputs.append(self._output(sequence, tuple(sequence.output_ids), text))

    def _account(self, chunk: Chunk) -> None:
        sequence = chunk.sequence
        sequence.num_computed_tokens = chunk.start + chunk.num_tokens
        if chunk.start < sequence.num_prompt_tokens or chunk.num_tokens > 1:
            self._num_prefilled += chunk.num_tokens

    def _advance(self, chunk: Chunk, token_ids: list[int]) -> SequenceOutput:
        """Take the sampled tokens as far as the draft before them was right."""
        sequence, drafted = chunk.sequence, chunk.draft.token_ids if chunk.draft else []
        taken, text = [], ""
        for depth, token_id in enumerate(token_ids):
            taken.append(token_id)
            text += sequence.append(token_id)
            if sequence.finish is not None or depth == len(drafted) or token_id != drafted[depth]:
                break
        self._num_generated += len(taken)
        if chunk.draft is not None:
            num_accepted = len(taken) - 1
            sequence.num_computed_tokens += num_accepted
            self._num_drafted += len(drafted)
            self._num_accepted += num_accepted
            if self._speculator is not None:
                self._speculator.observe(chunk.draft, taken)
        return self._output(sequence, tuple(taken), text)

    def _step_stats(self, chunks: list[Chunk], before: EngineStats, clock: PhaseClock) -> StepStats:
        after = self.stats()
        num_decoded = sum(1 for chunk in chunks if chunk.num_tokens == 1)
        return StepStats(
            num_running=after.num_running,
            num_waiting=after.num_waiting,
            num_free_blocks=after.num_free_blocks,
            num_decode_tokens=num_decoded,
            num_prefill_tokens=sum(chunk.num_tokens for chunk in chunks) - num_decoded,
            num_cached_tokens=after.num_cached_tokens - before.num_cached_tokens,
            num_draft_tokens=after.num_draft_tokens - before.num_draft_tokens,
            num_accepted_tokens=after.num_accepted_tokens - before.num_accepted_tokens,
            num_generated_tokens=after.num_generated_tokens - before.num_generated_tokens,
            num_preemptions=after.num_preemptions - before.num_preemptions,
            seconds=clock.seconds,
        )

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
        full_ids = sequence.detokenizer.text_ids()
        return SequenceOutput(
            sequence.id,
            token_ids,
            text,
            finish=sequence.finish,
            full_text=sequence.detokenizer.text,
            full_token_ids=full_ids if self.tokenizer.is_plain(full_ids) else (),
            num_prompt_tokens=sequence.num_prompt_tokens,
            num_cached_tokens=sequence.num_cached_tokens,
            num_output_tokens=sequence.num_output_tokens,
        )


def _device(device: str) -> torch.device:
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device {device!r} was asked for, but torch sees no GPU: use device='cpu', or a CUDA build")
    return torch.device(device)


def _max_model_len(asked: int | None, longest: int | None) -> int:
    """The longest sequence: what was asked for, else what the model knows up to a default."""
    if asked is None:
        return min(longest or DEFAULT_MAX_MODEL_LEN, DEFAULT_MAX_MODEL_LEN)
    if asked < 2 or (longest is not None and asked > longest):
        raise ConfigError(f"max_model_len {asked} must be at least 2 and at most the model's own {longest}")
    return asked
