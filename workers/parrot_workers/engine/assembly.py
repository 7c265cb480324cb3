"""From settings to the parts of an engine: the model, its cache, and what schedules over them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools

import torch

from parrot_kernels import BLOCK_SIZE, Backend, backend_for
from parrot_mq.messages import CostModel
from parrot_workers.engine import calibration, memory, rehearsal
from parrot_workers.engine.batch_scheduler import BatchScheduler
from parrot_workers.engine.block_manager import BlockManager
from parrot_workers.engine.engine_settings import EngineSettings
from parrot_workers.engine.host_tier import HostTier
from parrot_workers.engine.kv_transfer import KVTransfer
from parrot_workers.engine.model_cache import make_cache
from parrot_workers.engine.model_runner import ModelRunner
from parrot_workers.engine.models.load import WHOLE, load_model
from parrot_workers.engine.models.model import Model
from parrot_workers.engine.paged_cache import PagedCache
from parrot_workers.engine.port import EngineSpec
from parrot_workers.engine.prompt import PromptEncoder, PromptLimits
from parrot_workers.engine.rank_group import RankGroup
from parrot_workers.engine.speculator import Speculator
from parrot_workers.engine.step_profiler import StepProfiler
from parrot_workers.engine.tokenizer import Tokenizer, load_tokenizer

CALIBRATED_BLOCKS = 64
"""Copied between device and host memory to learn what that costs, if there are so many."""

GUESSED_OVERLAP = 0.75
"""Of prefill and decode in one step, where nothing was measured: all engines of this kind read the weights once."""


@dataclasses.dataclass(frozen=True, slots=True)
class EngineParts:
    """What ``EngineCore`` runs. ``block_bytes`` are those of a block of the cache, all layers."""

    spec: EngineSpec
    tokenizer: Tokenizer
    encoder: PromptEncoder
    scheduler: BatchScheduler
    runner: ModelRunner
    kernels: Backend
    transfer: KVTransfer | None
    profiler: StepProfiler | None
    block_bytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class _Sizes:
    """What the settings come to, now that the model is known."""

    max_model_len: int
    block_bytes: int
    num_blocks: int
    num_host_slots: int


def assemble(settings: EngineSettings) -> EngineParts:
    """Load the model and build all that runs it; ranks that were started are ended if that fails.

    Raises ConfigError, with a remedy, for a model that the engine cannot run or settings that do not fit it, and
    RankLost.
    """
    if settings.num_threads is not None:
        torch.set_num_threads(settings.num_threads)
    if settings.place.type == "cuda":
        torch.cuda.set_device(settings.place)  # this thread's: else pinned memory would be the first GPU's
    with _ranks(settings) as ranks:
        model = load_model(
            str(settings.model),
            device=settings.place,
            dtype=settings.dtype,
            path=settings.path,
            max_model_len=settings.max_model_len,
            shard=ranks.shard if ranks is not None else WHOLE,
        )
        tokenizer = load_tokenizer(str(settings.model))
        if ranks is not None:
            ranks.wait_until_loaded()
        sizes = _sizes(settings, model, ranks)
        runner = _runner(settings, model, ranks, sizes.num_blocks)
        runner.verify()
        cost = _cost(settings, sizes, runner)
        transfer, tier = _host_tier(settings, sizes, runner.cache, cost)
        return EngineParts(
            spec=_spec(settings, sizes, tokenizer, cost),
            tokenizer=tokenizer,
            encoder=_encoder(sizes, model, tokenizer),
            scheduler=_scheduler(settings, sizes, tier, cost),
            runner=runner,
            kernels=backend_for(model.device),
            transfer=transfer,
            profiler=StepProfiler(settings.profile) if settings.profile is not None else None,
            block_bytes=sizes.block_bytes,
        )


def _ranks(settings: EngineSettings) -> RankGroup | contextlib.nullcontext[None]:
    return RankGroup(settings) if settings.tensor_parallel_size > 1 else contextlib.nullcontext()


def _runner(settings: EngineSettings, model: Model, ranks: RankGroup | None, num_blocks: int) -> ModelRunner:
    if ranks is not None:
        ranks.allocate(num_blocks, settings.max_num_batched_tokens)
    return ModelRunner(
        model,
        make_cache(settings, model, num_blocks),
        max_num_tokens=settings.max_num_batched_tokens,
        max_num_rows=settings.max_num_rows,
        buckets=settings.step_buckets,
        ranks=ranks,
    )


def _sizes(settings: EngineSettings, model: Model, ranks: RankGroup | None) -> _Sizes:
    max_model_len = settings.model_len(model.max_len)
    block_bytes = memory.block_bytes(model.layers.values(), settings.cache_dtype(model.dtype))
    # The ranks on a CPU share its memory.
    sharers = settings.tensor_parallel_size if settings.place.type == "cpu" else 1
    step_bytes = 0
    if settings.place.type == "cuda" and settings.num_blocks is None and settings.kv_memory_bytes is None:
        step_bytes = rehearsal.step_bytes(
            settings,
            functools.partial(_runner, settings, model, ranks),
            block_bytes=block_bytes,
            max_model_len=max_model_len,
        )
    num_blocks = settings.num_blocks or memory.num_blocks(
        block_bytes * sharers,
        settings.kv_memory_bytes,
        settings.place,
        max_num_tokens=settings.max_num_seqs * max_model_len,
        share=settings.memory_share,
        step_bytes=step_bytes,
    )
    num_host_slots = 0
    if settings.tensor_parallel_size == 1:
        num_host_slots = memory.num_host_slots(
            block_bytes, settings.host_kv_memory_bytes, settings.place, num_blocks=num_blocks
        )
    return _Sizes(max_model_len, block_bytes, num_blocks, num_host_slots)


def _cost(settings: EngineSettings, sizes: _Sizes, runner: ModelRunner) -> CostModel:
    if not settings.calibrate:
        return CostModel(overlap=GUESSED_OVERLAP)
    return calibration.calibrate(
        runner,
        max_num_seqs=settings.max_num_seqs,
        max_num_tokens=settings.max_num_batched_tokens,
        max_model_len=sizes.max_model_len,
    )


def _host_tier(
    settings: EngineSettings, sizes: _Sizes, cache: PagedCache, cost: CostModel
) -> tuple[KVTransfer, HostTier] | tuple[None, None]:
    if not sizes.num_host_slots or not settings.enable_prefix_caching:
        return None, None
    transfer = KVTransfer(cache, sizes.num_host_slots)
    some = min(CALIBRATED_BLOCKS, sizes.num_host_slots, sizes.num_blocks)
    reload_cost = calibration.calibrate_reload(transfer, some, cost) if settings.calibrate else None
    return transfer, HostTier(sizes.num_host_slots, reload_cost)


def _spec(settings: EngineSettings, sizes: _Sizes, tokenizer: Tokenizer, cost: CostModel) -> EngineSpec:
    return EngineSpec(
        model=settings.served_name,
        kind="torch",
        max_num_seqs=settings.max_num_seqs,
        max_model_len=sizes.max_model_len,
        block_size=BLOCK_SIZE,
        num_blocks=sizes.num_blocks,
        tokenizer_digest=tokenizer.digest,
        cost=cost,
    )


def _encoder(sizes: _Sizes, model: Model, tokenizer: Tokenizer) -> PromptEncoder:
    eos_ids = model.eos_ids | ({tokenizer.eos_id} if tokenizer.eos_id is not None else set())
    limits = PromptLimits(model.vocab_size, sizes.max_model_len, sizes.num_blocks, frozenset(eos_ids))
    return PromptEncoder(tokenizer, limits)


def _scheduler(settings: EngineSettings, sizes: _Sizes, tier: HostTier | None, cost: CostModel) -> BatchScheduler:
    return BatchScheduler(
        BlockManager(sizes.num_blocks, BLOCK_SIZE, enable_prefix_caching=settings.enable_prefix_caching, tier=tier),
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        max_num_rows=settings.max_num_rows,
        speculator=Speculator(cost) if settings.speculate else None,
        cost=cost,
    )
