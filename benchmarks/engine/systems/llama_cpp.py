"""llama.cpp through its own C interface: several sequences in a batch, a shared prefix computed once and copied.

Settings are the best of those tried: flash attention; keys and values in float16, its default, also for a float32 model
(in float32 it has half the speed); a cache of its own for each sequence (in a common one everybody's keys are read for
everybody), which is fast only while the sequences of a batch lie side by side and in order.
"""

from __future__ import annotations

import dataclasses
import heapq

import llama_cpp as lib
import numpy as np

from benchmarks.engine.gguf_file import gguf_of
from benchmarks.engine.serve import Emit, Setup, serve

MAX_BATCH_TOKENS = 512


@dataclasses.dataclass(slots=True)
class Running:
    """A sequence in a slot: the tokens still to be computed, from position ``start`` on."""

    number: int
    slot: int
    todo: list[int]
    start: int
    num_missing: int


class LlamaSystem:
    def __init__(self, setup: Setup) -> None:
        lib.llama_backend_init()
        self._max_num_seqs = setup.max_num_seqs
        self._model = lib.llama_model_load_from_file(
            str(gguf_of(setup.folder)).encode(), lib.llama_model_default_params()
        )
        if not self._model:
            raise RuntimeError("llama.cpp did not load the model; it says why on standard error")
        self._vocab_size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self._model))
        params = lib.llama_context_default_params()
        params.n_seq_max = setup.max_num_seqs + 1
        params.kv_unified = False
        params.n_ctx = params.n_seq_max * setup.max_len
        params.n_batch = params.n_ubatch = MAX_BATCH_TOKENS
        params.n_threads = params.n_threads_batch = setup.num_threads
        params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_ENABLED
        params.no_perf = True
        self._context = lib.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError("llama.cpp did not make a context; it says why on standard error")
        self._memory = lib.llama_get_memory(self._context)
        self._batch = lib.llama_batch_init(MAX_BATCH_TOKENS, 0, 1)
        self._prefix: list[int] = []
        self._free = list(range(setup.max_num_seqs))
        self._waiting: list[tuple[int, list[int], int]] = []
        self._running: list[Running] = []

    def describe(self) -> dict[str, str]:
        return {"llama_cpp_python": lib.__version__, "kv": "float16", "flash_attention": "on"}

    def warm(self, prefix: list[int]) -> None:
        """Compute the prefix in a slot of its own, whose cells the others share."""
        lib.llama_memory_clear(self._memory, False)
        self._prefix = prefix
        prefix_slot = self._max_num_seqs
        for start in range(0, len(prefix), MAX_BATCH_TOKENS):
            self._batch.n_tokens = 0
            for position in range(start, min(len(prefix), start + MAX_BATCH_TOKENS)):
                self._put(prefix[position], position, prefix_slot, wanted=False)
            self._decode()

    def add(self, number: int, prompt: list[int], num_tokens: int) -> None:
        self._waiting.append((number, prompt, num_tokens))

    def step(self, emit: Emit) -> None:
        while self._waiting and self._free:
            self._admit(*self._waiting.pop(0))
        self._batch.n_tokens = 0
        sampled = []
        for sequence in sorted(self._running, key=lambda sequence: (len(sequence.todo), sequence.slot)):
            part = sequence.todo[: MAX_BATCH_TOKENS - self._batch.n_tokens]
            for offset, token in enumerate(part):
                self._put(token, sequence.start + offset, sequence.slot, wanted=offset == len(sequence.todo) - 1)
            sequence.start += len(part)
            sequence.todo = sequence.todo[len(part) :]
            if part and not sequence.todo:
                sampled.append(sequence)
        self._decode()
        if not sampled:
            return
        logits = np.ctypeslib.as_array(lib.llama_get_logits(self._context), (len(sampled), self._vocab_size))
        for sequence, token in zip(sampled, logits.argmax(-1).tolist(), strict=True):
            emit(sequence.number, [token])
            sequence.todo = [token]
            sequence.num_missing -= 1
            if not sequence.num_missing:
                self._finish(sequence)

    def _admit(self, number: int, prompt: list[int], num_tokens: int) -> None:
        slot, shared = heapq.heappop(self._free), 0
        if prompt[: len(self._prefix)] == self._prefix and len(prompt) > len(self._prefix):
            shared = len(self._prefix)
            lib.llama_memory_seq_cp(self._memory, self._max_num_seqs, slot, 0, -1)
        self._running.append(Running(number, slot, prompt[shared:], shared, num_tokens))

    def _finish(self, sequence: Running) -> None:
        lib.llama_memory_seq_rm(self._memory, sequence.slot, -1, -1)
        self._running.remove(sequence)
        heapq.heappush(self._free, sequence.slot)

    def _put(self, token: int, position: int, slot: int, *, wanted: bool) -> None:
        batch, index = self._batch, self._batch.n_tokens
        batch.token[index], batch.pos[index], batch.logits[index] = token, position, wanted
        batch.n_seq_id[index], batch.seq_id[index][0] = 1, slot
        batch.n_tokens += 1

    def _decode(self) -> None:
        status = lib.llama_decode(self._context, self._batch)
        if status:
            raise RuntimeError(f"llama_decode answered {status}")
        lib.llama_synchronize(self._context)


if __name__ == "__main__":
    serve(LlamaSystem)
