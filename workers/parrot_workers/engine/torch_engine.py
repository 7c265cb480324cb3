"""The engine that runs models itself, on a CPU or a GPU: step = schedule, run, sample, postprocess."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from pathlib import Path

import torch

from parrot_kernels.attention_plan import BLOCK_SIZE
from parrot_mq.errors import ConfigError
from parrot_mq.messages import CostModel, SamplingParams
from parrot_workers.engine import memory, offline
from parrot_workers.engine.attention import PagedCache
from parrot_workers.engine.batch_scheduler import BatchScheduler, Chunk
from parrot_workers.engine.block_manager import BlockManager
from parrot_workers.engine.calibration import calibrate as measure
from parrot_workers.engine.calibration import calibrate_reload
from parrot_workers.engine.host_tier import HostTier
from parrot_workers.engine.kv_transfer import KVTransfer
from parrot_workers.engine.memory import MemoryUse
from parrot_workers.engine.model_loader import load_model
from parrot_workers.engine.model_runner import ModelRunner
from parrot_workers.engine.offline import Prompt
from parrot_workers.engine.port import (
    EngineSpec,
    EngineStats,
    FinishReason,
    PromptSegment,
    SequenceInput,
    SequenceOutput,
)
from parrot_workers.engine.prompt import InvalidSequence, PromptEncoder, PromptLimits
from parrot_workers.engine.sampler import sample
from parrot_workers.engine.sequence import Sequence
from parrot_workers.engine.tokenizer import load_tokenizer

log = logging.getLogger(__name__)

DEFAULT_MAX_MODEL_LEN = 8192
CALIBRATED_BLOCKS = 64
"""Copied between device and host memory to learn what that costs, if there are so many."""


class TorchEngine:
    """Any decoder-only model that transformers loads, with continuous batching and prefix caching.

    ``model`` is a folder or an id; ``name`` what requests call it (default: the folder's name, or the id). The cache
    gets ``num_blocks`` blocks, or as many as ``kv_memory_bytes`` hold (default: see ``memory.num_blocks``); content
    that it gives away goes to ``host_kv_memory_bytes`` of host memory (default: see ``memory.num_host_slots``).
    ``max_num_batched_tokens`` bounds a step's tokens, so that a long prompt does not hold up running outputs.
    ``calibrate`` False keeps the default cost model and starts faster. Raises ConfigError, with a remedy, if the model
    or a setting is wrong. One thread owns an engine; ``torch.set_num_threads`` is process-wide. ``clock`` is what the
    times of ``retain`` are measured by.

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
        max_num_seqs: int = 32,
        max_num_batched_tokens: int = 512,
        kv_memory_bytes: int | None = None,
        host_kv_memory_bytes: int | None = None,
        num_blocks: int | None = None,
        max_model_len: int | None = None,
        num_threads: int | None = None,
        enable_prefix_caching: bool = True,
        calibrate: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if max_num_seqs < 1 or max_num_batched_tokens < max_num_seqs:
            raise ConfigError(
                f"max_num_seqs ({max_num_seqs}) must be at least 1, and max_num_batched_tokens "
                f"({max_num_batched_tokens}) at least max_num_seqs, for each decodes a token"
            )
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        loaded = load_model(str(model), device=_device(device), dtype=dtype)
        self.tokenizer = load_tokenizer(str(model))
        max_model_len = _max_model_len(max_model_len, loaded.max_len)
        block_bytes = memory.block_bytes(loaded.layers.values(), loaded.dtype)
        num_blocks = num_blocks or memory.num_blocks(
            block_bytes, kv_memory_bytes, loaded.device, max_num_tokens=max_num_seqs * max_model_len
        )
        num_slots = memory.num_host_slots(block_bytes, host_kv_memory_bytes, loaded.device, num_blocks=num_blocks)
        cache = PagedCache(loaded.layers, num_blocks, BLOCK_SIZE, loaded.dtype, loaded.device)
        self._runner: ModelRunner | None = ModelRunner(loaded, cache)
        self._runner.verify()
        cost = CostModel()
        if calibrate:
            cost = measure(
                self._runner,
                max_num_seqs=max_num_seqs,
                max_num_tokens=max_num_batched_tokens,
                max_model_len=max_model_len,
            )
        self._transfer = KVTransfer(cache, num_slots) if num_slots and enable_prefix_caching else None
        tier = None
        if self._transfer is not None:
            some = min(CALIBRATED_BLOCKS, num_slots, num_blocks)
            tier = HostTier(num_slots, calibrate_reload(self._transfer, some, cost) if calibrate else None)
        self._blocks = BlockManager(num_blocks, BLOCK_SIZE, enable_prefix_caching=enable_prefix_caching, tier=tier)
        self._scheduler = BatchScheduler(
            self._blocks, max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens
        )
        eos_ids = loaded.eos_ids | ({self.tokenizer.eos_id} if self.tokenizer.eos_id is not None else set())
        self._encoder = PromptEncoder(
            self.tokenizer, PromptLimits(loaded.vocab_size, max_model_len, num_blocks, eos_ids)
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
        self._clock = clock
        self._num_added = 0
        self._num_generated = self._num_prefilled = 0

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

    def prefill(self, sequence: SequenceInput) -> None:
        """Compute a prompt's keys and values ahead: see ``TakesHints``. Unfit prompts end as INVALID."""
        if sequence.id in self._sequences:
            return
        self._num_added += 1
        try:
            prepared = self._encoder.prepare_prompt(sequence, self._num_added)
        except InvalidSequence as error:
            self._outputs.append(SequenceOutput(sequence.id, finish=FinishReason.INVALID, error=str(error)))
            return
        self._sequences[sequence.id] = prepared
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
        chunks = self._scheduler.plan()
        if not chunks:
            return outputs + self._ended_ahead()
        assert self._runner is not None, "the engine is closed"
        try:
            if self._transfer is not None:
                self._transfer.run(self._blocks.take_transfers())
            logits = self._runner.run(chunks)
            sampled = [chunk.sequence for chunk in chunks if chunk.samples]
            token_ids = sample(logits, sampled) if logits is not None else []
        except BaseException:
            # Blocks were published that may hold nothing: recompute everything rather than serve them.
            self._scheduler.restart()
            self._outputs = outputs
            raise
        for chunk in chunks:
            self._account(chunk)
        outputs += [self._advance(*pair) for pair in zip(sampled, token_ids, strict=True)]
        return outputs + self._ended_ahead()

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
            num_reloaded_tokens=self._blocks.num_reloaded_blocks * BLOCK_SIZE,
        )

    def memory(self) -> MemoryUse:
        """Return what its weights, its cache and its steps use. Raises AssertionError once it is closed."""
        assert self._runner is not None, "the engine is closed"
        model, transfer = self._runner.model, self._transfer
        block_bytes = memory.block_bytes(model.layers.values(), model.dtype)
        return MemoryUse(
            weights=model.weight_bytes,
            kv=self._blocks.num_blocks * block_bytes,
            touched_kv=self._blocks.num_touched_blocks * block_bytes,
            host_kv=transfer.host_bytes if transfer is not None else 0,
            workspace=transfer.staged_bytes if transfer is not None else 0,
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
        self._runner = self._transfer = None

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

    def _account(self, chunk: Chunk) -> None:
        sequence = chunk.sequence
        sequence.num_computed_tokens = chunk.start + chunk.num_tokens
        if chunk.start < sequence.num_prompt_tokens or chunk.num_tokens > 1:
            self._num_prefilled += chunk.num_tokens

    def _advance(self, sequence: Sequence, token_id: int) -> SequenceOutput:
        self._num_generated += 1
        return self._output(sequence, (token_id,), sequence.append(token_id))

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
