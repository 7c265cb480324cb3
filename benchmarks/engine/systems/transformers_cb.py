"""transformers' continuous batching over its paged cache; it runs in a thread of its own.

It takes flash attention where that is installed and the dtype allows it, else SDPA.
"""

from __future__ import annotations

import os

import torch
import transformers
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from benchmarks.engine.serve import Emit, Setup, serve

PAGE_TOKENS = 32
"""Prefixes are shared by whole pages; by default one has 256 tokens, more than most prefixes here."""
NEVER_EOS = -1
RESULT_TIMEOUT_S = 0.05


class ContinuousSystem:
    def __init__(self, setup: Setup) -> None:
        torch.set_num_threads(setup.num_threads)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            setup.folder, dtype=setup.dtype, attn_implementation="sdpa"
        )
        model = model.to(setup.device).eval()
        # On a CPU 512 tokens a request are plenty; a GPU's requests may be as long as was said.
        tokens_each = 512 if setup.device == "cpu" else setup.max_len
        self._manager = model.init_continuous_batching(
            transformers.GenerationConfig(do_sample=False, eos_token_id=NEVER_EOS, pad_token_id=0),
            ContinuousBatchingConfig(
                page_size=PAGE_TOKENS,
                num_blocks=setup.max_num_seqs * tokens_each // PAGE_TOKENS,
                max_batch_tokens=setup.max_batch_tokens,
                max_requests_per_batch=setup.max_num_seqs,
                auto_switch_to_flash=setup.dtype != "float32",
            ),
        )
        self._attention = model.config._attn_implementation
        if setup.device != "cpu":
            self._manager.warmup()  # captures its CUDA graphs
        self._manager.start()
        self._seen: dict[str, int] = {}

    def describe(self) -> dict[str, str]:
        attention = f"{self._attention}, paged"
        return {"transformers": transformers.__version__, "torch": torch.__version__, "attention": attention}

    def warm(self, prefix: list[int]) -> None:
        self.add(-1, prefix, 2)
        while self._seen:
            self.step(lambda number, tokens: None)

    def add(self, number: int, prompt: list[int], num_tokens: int) -> None:
        key = self._manager.add_request(prompt, str(number), num_tokens, streaming=True, eos_token_id=NEVER_EOS)
        self._seen[key] = 0

    def step(self, emit: Emit) -> None:
        output = self._manager.get_result(timeout=RESULT_TIMEOUT_S)
        if output is None:
            if not self._manager.is_running():
                raise RuntimeError("the manager's thread has ended")
            return
        if output.error:
            raise RuntimeError(output.error)
        seen = self._seen[output.request_id]
        emit(int(output.request_id), output.generated_tokens[seen:])
        self._seen[output.request_id] = len(output.generated_tokens)
        if output.is_finished():
            del self._seen[output.request_id]


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    serve(ContinuousSystem)
