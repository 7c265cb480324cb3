"""The engine that runs models itself, on a CPU or a GPU."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from pathlib import Path

import torch

from parrot_kernels import BLOCK_SIZE
from parrot_mq.errors import ConfigError
from parrot_mq.messages import CostModel, SamplingParams
from parrot_workers.engine import memory, offline
from parrot_workers.engine.batch_scheduler import BatchScheduler
from parrot_workers.engine.block_manager import BlockManager
from parrot_workers.engine.calibration import calibrate as measure
from parrot_workers.engine.calibration import calibrate_reload
from parrot_workers.engine.core import EngineCore
from parrot_workers.engine.host_tier import HostTier
from parrot_workers.engine.kv_transfer import KVTransfer
from parrot_workers.engine.memory import MemoryUse
from parrot_workers.engine.model_runner import ModelRunner
from parrot_workers.engine.models.load import DEFAULT_MAX_MODEL_LEN, WHOLE, ModelPath, load_model
from parrot_workers.engine.offline import Prompt
from parrot_workers.engine.paged_cache import PagedCache
from parrot_workers.engine.port import EngineSpec, SequenceOutput
from parrot_workers.engine.prompt import PromptEncoder, PromptLimits
from parrot_workers.engine.rank_group import RankGroup
from parrot_workers.engine.speculator import Speculator
from parrot_workers.engine.step_profiler import StepProfiler
from parrot_workers.engine.step_stats import StepStats
from parrot_workers.engine.tokenizer import load_tokenizer

CALIBRATED_BLOCKS = 64
"""Copied between device and host memory to learn what that costs, if there are so many."""


class Engine(EngineCore):
    """Any decoder-only model that transformers loads, with continuous batching and prefix caching.

    ``model`` is a folder or an id; ``name`` what requests call it (default: the folder's name, or the id). ``path``
    says who computes it: "fast" our own code for the Llama family, "general" transformers', "auto" what fits. With a
    ``tensor_parallel_size`` above 1 as many processes compute a model of the fast path together: on the GPUs from
    ``device`` on, or on the CPU, with ``num_threads`` and a cache each (see ``RankGroup`` for what that asks of a
    script). The cache gets ``num_blocks`` blocks, or as many as ``kv_memory_bytes`` hold (default: see
    ``memory.num_blocks``); content that it gives away goes to ``host_kv_memory_bytes`` of host memory (default: see
    ``memory.num_host_slots``).
    ``max_num_batched_tokens`` bounds a step's tokens, so that a long prompt does not hold up running outputs.
    ``speculate`` lets sequences verify drafts copied from their own text where the cost model expects a gain; outputs
    are the same either way. ``calibrate`` False keeps the default cost model and starts faster. ``profile`` is a folder
    for a trace of some steps; ``on_step`` is called after each step with its statistics. ``clock`` is what the times of
    ``retain`` are measured by. Raises ConfigError, with a remedy, if the model or a setting is wrong. One thread owns
    an engine; ``torch.set_num_threads`` is process-wide.

    Alone, without a service:

        engine = Engine("path/to/model")
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
        tensor_parallel_size: int = 1,
        max_num_seqs: int = 32,
        max_num_batched_tokens: int = 512,
        kv_memory_bytes: int | None = None,
        host_kv_memory_bytes: int | None = None,
        num_blocks: int | None = None,
        max_model_len: int | None = None,
        num_threads: int | None = None,
        enable_prefix_caching: bool = True,
        speculate: bool = True,
        calibrate: bool = True,
        profile: str | Path | None = None,
        on_step: Callable[[StepStats], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if max_num_seqs < 1 or max_num_batched_tokens < max_num_seqs:
            raise ConfigError(
                f"max_num_seqs ({max_num_seqs}) must be at least 1, and max_num_batched_tokens "
                f"({max_num_batched_tokens}) at least max_num_seqs, for each decodes a token"
            )
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        if tensor_parallel_size < 1 or (tensor_parallel_size > 1 and host_kv_memory_bytes):
            raise ConfigError(
                f"tensor_parallel_size ({tensor_parallel_size}) must be at least 1; above 1 there is no host tier: "
                "leave host_kv_memory_bytes out"
            )
        place = _device(device)
        ranks: RankGroup | None = None
        if tensor_parallel_size > 1:
            ranks = RankGroup(str(model), tensor_parallel_size, device=place, dtype=dtype, max_model_len=max_model_len)
        with ranks or contextlib.nullcontext():
            loaded = load_model(
                str(model),
                device=place,
                dtype=dtype,
                path=path,
                max_model_len=max_model_len,
                shard=ranks.shard if ranks is not None else WHOLE,
            )
            self.tokenizer = load_tokenizer(str(model))
            max_model_len = _max_model_len(max_model_len, loaded.max_len)
            self._block_bytes = memory.block_bytes(loaded.layers.values(), loaded.dtype)
            num_blocks = num_blocks or memory.num_blocks(
                # The ranks on a CPU share its memory.
                self._block_bytes * (tensor_parallel_size if place.type == "cpu" else 1),
                kv_memory_bytes,
                place,
                max_num_tokens=max_num_seqs * max_model_len,
            )
            num_slots = 0
            if ranks is not None:
                ranks.allocate(num_blocks, max_num_batched_tokens)
            else:
                num_slots = memory.num_host_slots(self._block_bytes, host_kv_memory_bytes, place, num_blocks=num_blocks)
            cache = PagedCache(loaded.layers, num_blocks, loaded.dtype, loaded.device)
            runner = ModelRunner(loaded, cache, max_num_tokens=max_num_batched_tokens, ranks=ranks)
            runner.verify()
            cost = CostModel()
            if calibrate:
                cost = measure(
                    runner,
                    max_num_seqs=max_num_seqs,
                    max_num_tokens=max_num_batched_tokens,
                    max_model_len=max_model_len,
                )
            transfer = KVTransfer(cache, num_slots) if num_slots and enable_prefix_caching else None
            tier = None
            if transfer is not None:
                some = min(CALIBRATED_BLOCKS, num_slots, num_blocks)
                tier = HostTier(num_slots, calibrate_reload(transfer, some, cost) if calibrate else None)
            eos_ids = loaded.eos_ids | ({self.tokenizer.eos_id} if self.tokenizer.eos_id is not None else set())
            super().__init__(
                spec=EngineSpec(
                    model=name or (Path(model).name if Path(model).is_dir() else str(model)),
                    kind="torch",
                    max_num_seqs=max_num_seqs,
                    max_model_len=max_model_len,
                    block_size=BLOCK_SIZE,
                    num_blocks=num_blocks,
                    tokenizer_digest=self.tokenizer.digest,
                    cost=cost,
                ),
                encoder=PromptEncoder(
                    self.tokenizer, PromptLimits(loaded.vocab_size, max_model_len, num_blocks, frozenset(eos_ids))
                ),
                scheduler=BatchScheduler(
                    BlockManager(num_blocks, BLOCK_SIZE, enable_prefix_caching=enable_prefix_caching, tier=tier),
                    max_num_seqs=max_num_seqs,
                    max_num_batched_tokens=max_num_batched_tokens,
                    speculator=Speculator(cost) if speculate else None,
                ),
                runner=runner,
                transfer=transfer,
                profiler=StepProfiler(profile) if profile is not None else None,
                on_step=on_step,
                clock=clock,
            )
        memory.give_back_freed()

    def memory(self) -> MemoryUse:
        """Return what its weights, its cache and its steps use. Raises AssertionError once it is closed."""
        assert self._runner is not None, "the engine is closed"
        transfer = self._transfer
        return MemoryUse(
            weights=self._runner.model.weight_bytes,
            kv=self._blocks.num_blocks * self._block_bytes,
            touched_kv=self._blocks.num_touched_blocks * self._block_bytes,
            host_kv=transfer.host_bytes if transfer is not None else 0,
            workspace=self._runner.nbytes + (transfer.staged_bytes if transfer is not None else 0),
        )

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
