"""transformers' ``generate`` on a static batch: what is there is padded, run to its end, then the next batch.

It reuses no prefix: every prompt is computed whole.
"""

from __future__ import annotations

import os

import torch
import transformers
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from benchmarks.engine.serve import Emit, Setup, serve

PAD_ID = 0


class Streamer(BaseStreamer):
    """Hands the tokens of each step on; the first thing that it is given are the prompts."""

    def __init__(self, numbers: list[int], emit: Emit) -> None:
        self._numbers, self._emit, self._seen_prompts = numbers, emit, False

    def put(self, value: Tensor) -> None:
        if self._seen_prompts:
            for number, token in zip(self._numbers, value.tolist(), strict=True):
                self._emit(number, [token])
        self._seen_prompts = True

    def end(self) -> None:
        """Nothing is held back."""


class GenerateSystem:
    def __init__(self, setup: Setup) -> None:
        torch.set_num_threads(setup.num_threads)
        model = transformers.AutoModelForCausalLM.from_pretrained(setup.folder, dtype=setup.dtype)
        self._model = model.to(setup.device).eval()
        self._device = setup.device
        self._model.generation_config.eos_token_id = None
        self._max_num_seqs = setup.max_num_seqs
        self._waiting: list[tuple[int, list[int], int]] = []

    def describe(self) -> dict[str, str]:
        return {"transformers": transformers.__version__, "torch": torch.__version__, "attention": "sdpa"}

    def warm(self, prefix: list[int]) -> None:
        self.add(-1, prefix, 2)
        self.step(lambda number, tokens: None)

    def add(self, number: int, prompt: list[int], num_tokens: int) -> None:
        self._waiting.append((number, prompt, num_tokens))

    @torch.inference_mode()
    def step(self, emit: Emit) -> None:
        batch, self._waiting = self._waiting[: self._max_num_seqs], self._waiting[self._max_num_seqs :]
        length = max(len(prompt) for _, prompt, _ in batch)
        ids = [[PAD_ID] * (length - len(prompt)) + prompt for _, prompt, _ in batch]
        mask = [[0] * (length - len(prompt)) + [1] * len(prompt) for _, prompt, _ in batch]
        self._model.generate(
            torch.tensor(ids, device=self._device),
            attention_mask=torch.tensor(mask, device=self._device),
            max_new_tokens=max(num_tokens for *_, num_tokens in batch),
            do_sample=False,
            pad_token_id=PAD_ID,
            streamer=Streamer([number for number, *_ in batch], emit),
        )


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    serve(GenerateSystem)
