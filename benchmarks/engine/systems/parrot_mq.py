"""Our engine, by the calls that its worker makes."""

from __future__ import annotations

import os

import torch

from benchmarks.engine.serve import Emit, Setup, serve
from parrot_kernels import backend_for
from parrot_mq.messages import SamplingParams
from parrot_workers.engine.engine import Engine
from parrot_workers.engine.port import PromptSegment, SequenceInput


class ParrotSystem:
    def __init__(self, setup: Setup) -> None:
        self._engine = Engine(
            setup.folder,
            device=setup.device,
            dtype=setup.dtype,
            max_num_seqs=setup.max_num_seqs,
            max_num_batched_tokens=setup.max_batch_tokens,
            max_model_len=setup.max_len,
            kv_memory_bytes=setup.kv_memory_bytes,
            host_kv_memory_bytes=0,  # nothing is ever given away; pinning memory would only cost the start
            num_threads=setup.num_threads,
            enable_prefix_caching=setup.prefix_caching,
            speculate=False,  # random weights run in circles, which drafts would copy: no gain that a user will see
            calibrate=False,
            **({"kv_dtype": setup.kv_dtype} if setup.kv_dtype != "auto" else {}),
        )
        self._setup = setup

    def describe(self) -> dict[str, str]:
        shares = "prefix" if self._setup.prefix_caching else "nothing"
        kernels = backend_for(self._setup.device).name
        return {"torch": torch.__version__, "kernels": kernels, "shares": shares, "kv": self._setup.kv_dtype}

    def warm(self, prefix: list[int]) -> None:
        self._engine.generate([prefix], SamplingParams(max_tokens=2, ignore_eos=True))

    def add(self, number: int, prompt: list[int], num_tokens: int) -> None:
        sampling = SamplingParams(max_tokens=num_tokens, ignore_eos=True)
        self._engine.add(SequenceInput(str(number), (PromptSegment("", token_ids=tuple(prompt)),), sampling))

    def step(self, emit: Emit) -> None:
        for output in self._engine.step():
            if output.error:
                raise RuntimeError(output.error)
            emit(int(output.id), output.token_ids)


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    serve(ParrotSystem)
