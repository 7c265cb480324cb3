"""The inside of a measured system: reads orders as JSON lines, answers each with one. Standard library only.

Every system is a process of its own, in its own environment. Orders are ``load`` and ``run``; the answer is
``{"ok": ...}`` or ``{"error": ...}``. What libraries print goes to standard error.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

Emit = Callable[[int, Sequence[int]], None]
"""Called with a request's number and its new tokens as soon as they are known."""


@dataclasses.dataclass(frozen=True, slots=True)
class Setup:
    """What a system is loaded with: a Hugging Face folder, ``bfloat16`` or ``float32``, and the sizes to expect.

    ``max_batch_tokens`` bounds a step; ``prefix_caching`` and ``kv_dtype`` are for those who have a choice.
    """

    folder: Path
    dtype: str
    num_threads: int
    max_num_seqs: int
    max_len: int
    kv_memory_bytes: int
    device: str = "cpu"
    max_batch_tokens: int = 512
    prefix_caching: bool = True
    kv_dtype: str = "auto"


class System(Protocol):
    """One engine behind two calls."""

    def describe(self) -> dict[str, str]:
        """Versions, and settings that are not its defaults."""

    def warm(self, prefix: list[int]) -> None:
        """Run one request that begins with ``prefix``, so that what the next ones share is in the cache."""

    def add(self, number: int, prompt: list[int], num_tokens: int) -> None:
        """Queue a request for exactly ``num_tokens`` greedy tokens."""

    def step(self, emit: Emit) -> None:
        """Go a step further, or wait a moment for what comes."""


class Log:
    """When each request got its tokens, in seconds since the run's start."""

    def __init__(self, num_requests: int, num_tokens: int, start_s: float) -> None:
        self._start_s, self._num_tokens = start_s, num_tokens
        self.outputs: list[list[int]] = [[] for _ in range(num_requests)]
        self.first_s = [0.0] * num_requests
        self.last_s = [0.0] * num_requests
        self.num_unfinished = num_requests
        self._num_silent = num_requests
        self.decoded_from = (0.0, 0)
        """When the last request had its first token, and how many tokens there were by then."""

    def emit(self, number: int, tokens: Sequence[int]) -> None:
        if not tokens:
            return
        now_s, output = time.perf_counter() - self._start_s, self.outputs[number]
        if not output:
            self.first_s[number] = now_s
            self._num_silent -= 1
        output.extend(tokens)
        if not self._num_silent and not self.decoded_from[1]:
            self.decoded_from = (now_s, sum(map(len, self.outputs)))
        if len(output) >= self._num_tokens:
            self.last_s[number] = now_s
            self.num_unfinished -= 1


def run(system: System, prefix: list[int], prompts: list[list[int]], arrivals_s: list[float], num_tokens: int) -> Any:
    """Run ``prompts``, each handed over at its time of arrival, and return what was seen."""
    system.warm(prefix)
    start_s = time.perf_counter()
    log = Log(len(prompts), num_tokens, start_s)
    coming = collections.deque(enumerate(prompts))
    while log.num_unfinished:
        while coming and time.perf_counter() - start_s >= arrivals_s[coming[0][0]]:
            number, prompt = coming.popleft()
            system.add(number, prompt, num_tokens)
        if log.num_unfinished > len(coming):
            system.step(log.emit)
        else:
            time.sleep(max(0.0, arrivals_s[coming[0][0]] - (time.perf_counter() - start_s)))
    decode_start_s, num_before = log.decoded_from
    num_decoded, decode_s = sum(map(len, log.outputs)) - num_before, max(log.last_s) - decode_start_s
    return {
        "wall_s": max(log.last_s),
        "ttft_s": [first - arrival for first, arrival in zip(log.first_s, arrivals_s, strict=True)],
        "decode_tokens_per_s": num_decoded / decode_s if num_decoded and decode_s else None,
        "outputs": log.outputs,
    }


def serve(load: Callable[[Setup], System]) -> None:
    """Answer orders until standard input ends, then end the process."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    system: System | None = None
    for line in sys.stdin:
        order = json.loads(line)
        try:
            if system is None:
                system = load(Setup(**{**order, "folder": Path(order["folder"])}))
                answer: Any = system.describe()
            else:
                answer = run(system, **order)
        except Exception as error:  # noqa: BLE001 - a peer may raise anything; the driver reports it and goes on
            traceback.print_exc()
            print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=answers)
            continue
        print(json.dumps({"ok": answer}), file=answers)
    os._exit(0)  # a system's threads may go on for ever
