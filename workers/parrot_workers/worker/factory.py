"""From options to an engine. Torch is imported only for the kind that needs it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import Any

from parrot_mq.errors import ConfigError
from parrot_workers.engine.port import EnginePort
from parrot_workers.sim import InstantClock, RealClock, SimEngine
from parrot_workers.worker.options import Options


def engine_factory(options: Options) -> Callable[[], EnginePort]:
    """Return a function that builds the engine (slowly: it loads weights), to be called in the thread that owns it.

    Raises ``ConfigError`` if something that the kind needs is not installed; the returned function raises it for a
    model that cannot be loaded.
    """
    if options.kind == "sim":
        return lambda: _sim(options)
    missing = [module for module in ("torch", "transformers") if importlib.util.find_spec(module) is None]
    if missing:
        raise ConfigError(f"--kind torch needs {' and '.join(missing)}: pip install 'parrot-mq[worker]'")
    return lambda: _torch(options)


def _sim(options: Options) -> EnginePort:
    sizes: dict[str, Any] = {
        "max_num_seqs": options.max_num_seqs,
        "max_model_len": options.max_model_len,
        "max_num_batched_tokens": options.max_num_batched_tokens,
    }
    return SimEngine(
        options.name,
        cost=options.cost,
        clock=InstantClock() if options.instant else RealClock(),
        mean_output_tokens=options.mean_output_tokens,
        **{name: size for name, size in sizes.items() if size is not None},
    )


def spare_cores() -> int:
    """Return how many cores a model may take: all that we may use but one, which Redis, the scheduler and the clients
    need. Two spinning threads of which one is interrupted all the time are slower than one that is not.
    """
    return max(1, len(os.sched_getaffinity(0)) - 1)


def _torch(options: Options) -> EnginePort:
    import torch

    from parrot_workers.engine.engine import Engine
    from parrot_workers.engine.engine_settings import EngineSettings
    from parrot_workers.engine.step_log import StepLog

    device = options.device or ("cuda:0" if torch.cuda.is_available() else "cpu")
    given: dict[str, Any] = {
        "max_num_seqs": options.max_num_seqs,
        "max_num_batched_tokens": options.max_num_batched_tokens,
        "max_model_len": options.max_model_len,
        "memory_share": options.memory_share,
        "kv_memory_bytes": round(options.kv_memory_gib * 2**30) if options.kv_memory_gib else None,
        "host_kv_memory_bytes": round(options.host_kv_memory_gib * 2**30) if options.host_kv_memory_gib else None,
        "tensor_parallel_size": options.tensor_parallel_size,
        "num_threads": options.num_threads or (spare_cores() if device == "cpu" else None),
        "profile": options.profile,
    }
    settings = EngineSettings(
        options.model,
        name=options.name,
        device=device,
        dtype=options.dtype,
        kv_dtype=options.kv_dtype,
        calibrate=options.calibrate,
        speculate=options.speculate,
        enable_prefix_caching=options.prefix_caching,
        **{name: value for name, value in given.items() if value is not None},
    )
    engine: EnginePort = Engine(settings, on_step=StepLog(options.step_log) if options.step_log else None)
    return engine
