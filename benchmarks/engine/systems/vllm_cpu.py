"""vLLM's CPU build, in process: its ``LLM`` class, whose engine is added to and stepped directly."""

from __future__ import annotations

import vllm
from vllm.sampling_params import RequestOutputKind

from benchmarks.engine.serve import Emit, Setup, serve


class VllmSystem:
    def __init__(self, setup: Setup) -> None:
        self._engine = vllm.LLM(
            model=str(setup.folder),
            dtype=setup.dtype,
            max_model_len=setup.max_len,
            max_num_seqs=setup.max_num_seqs,
            enable_prefix_caching=True,
            disable_log_stats=True,
            seed=0,
        ).llm_engine

    def describe(self) -> dict[str, str]:
        return {"vllm": vllm.__version__}

    def warm(self, prefix: list[int]) -> None:
        self.add(-1, prefix, 2)
        while self._engine.has_unfinished_requests():
            self._engine.step()

    def add(self, number: int, prompt: list[int], num_tokens: int) -> None:
        sampling = vllm.SamplingParams(
            temperature=0,
            max_tokens=num_tokens,
            min_tokens=num_tokens,
            ignore_eos=True,
            output_kind=RequestOutputKind.DELTA,
        )
        self._engine.add_request(str(number), {"prompt_token_ids": prompt}, sampling)

    def step(self, emit: Emit) -> None:
        for output in self._engine.step():
            emit(int(output.request_id), output.outputs[0].token_ids)


if __name__ == "__main__":
    serve(VllmSystem)
