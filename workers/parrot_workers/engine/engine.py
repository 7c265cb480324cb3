"""The engine that runs models itself, on a CPU or a GPU."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

from parrot_mq.messages import SamplingParams
from parrot_workers.engine import memory, offline
from parrot_workers.engine.assembly import assemble
from parrot_workers.engine.core import EngineCore
from parrot_workers.engine.engine_settings import EngineSettings
from parrot_workers.engine.memory import MemoryUse
from parrot_workers.engine.offline import Prompt
from parrot_workers.engine.port import SequenceOutput
from parrot_workers.engine.step_stats import StepStats


class Engine(EngineCore):
    """Any decoder-only model that transformers loads, with continuous batching and prefix caching.

    ``model`` is a folder or an id; ``settings`` are the other fields of ``EngineSettings``, by keyword. Or ``model`` is
    an ``EngineSettings``, of which ``settings`` replace some. ``on_step`` is called after each step with its
    statistics; ``clock`` is what the times of ``retain`` are measured by. Raises ConfigError, with a remedy, if the
    model or a setting is wrong. One thread owns an engine.

    Alone, without a service:

        engine = Engine("path/to/model", max_num_seqs=8)
        print(engine.generate("Once upon a time", SamplingParams(max_tokens=20))[0].full_text)
    """

    def __init__(
        self,
        model: str | Path | EngineSettings,
        *,
        on_step: Callable[[StepStats], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        **settings: Any,
    ) -> None:
        if isinstance(model, EngineSettings):
            self.settings = dataclasses.replace(model, **settings)
        else:
            self.settings = EngineSettings(model, **settings)
        parts = assemble(self.settings)
        self.tokenizer = parts.tokenizer
        self._block_bytes = parts.block_bytes
        super().__init__(
            spec=parts.spec,
            encoder=parts.encoder,
            scheduler=parts.scheduler,
            runner=parts.runner,
            kernels=parts.kernels,
            transfer=parts.transfer,
            runs_ahead=self.settings.runs_ahead,
            profiler=parts.profiler,
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
