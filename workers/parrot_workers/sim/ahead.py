"""Prompts that a simulated engine computes before anybody asks for an answer."""

from __future__ import annotations

import dataclasses
from collections import Counter, deque

from parrot_workers.engine.port import FinishReason, SequenceOutput
from parrot_workers.sim.block_pool import BlockPool

MAX_WAITING = 64
MEMORY_FRACTION = 0.25
"""Of all blocks, those that a prompt may be computed into; what is longer is computed as far as that."""


@dataclasses.dataclass(slots=True)
class _Prompt:
    id: str
    digests: list[bytes]
    num_computed: int = 0
    """Tokens."""


class Ahead:
    """One prompt at a time, first come, first served, of its full blocks: what ``engine.prefill_ahead`` is.

    It takes no block that somebody holds or a hint retains, and gives up as soon as a sequence needs its own.
    """

    def __init__(self, pool: BlockPool, block_size: int) -> None:
        self._pool = pool
        self._block_size = block_size
        self._waiting: deque[_Prompt] = deque()
        self._current: _Prompt | None = None
        self._ended: list[SequenceOutput] = []

    def __len__(self) -> int:
        """Prompts that have not ended, and those whose end has not been said."""
        return (self._current is not None) + len(self._waiting) + len(self._ended)

    @property
    def num_computed(self) -> int:
        """Tokens that are computed of the prompt it is at."""
        return self._current.num_computed if self._current is not None else 0

    def add(self, prompt_id: str, digests: list[bytes]) -> None:
        """Queue a prompt."""
        digests = digests[: max(1, int(self._pool.num_blocks * MEMORY_FRACTION))]
        if len(self._waiting) < MAX_WAITING and digests:
            self._waiting.append(_Prompt(prompt_id, digests))
        else:
            self._end(prompt_id, FinishReason.ABORTED)

    def remove(self, prompt_id: str) -> bool:
        """Take a prompt out; False if there is no such one."""
        if self._current is not None and self._current.id == prompt_id:
            self.give_way()
            return True
        for prompt in self._waiting:
            if prompt.id == prompt_id:
                self._waiting.remove(prompt)
                self._end(prompt_id, FinishReason.ABORTED)
                return True
        return False

    def give_way(self) -> bool:
        """Give up the prompt that holds blocks; False if there is none."""
        if self._current is None:
            return False
        self._leave(FinishReason.ABORTED)
        return True

    def compute(self, budget: int) -> tuple[int, int]:
        """Compute up to ``budget`` tokens; returns how many, and how many lie before them."""
        while budget > 0 and self._current is None and self._waiting:
            self._begin(self._waiting.popleft())
        prompt, size = self._current, self._block_size
        if prompt is None or budget <= 0:
            return 0, 0
        first, num_blocks = prompt.num_computed // size, len(prompt.digests)
        while first < num_blocks and self._pool.is_cached(prompt.digests[first]):
            first += 1  # somebody else has computed it meanwhile
        start = max(prompt.num_computed, first * size)
        prompt.num_computed = min(num_blocks * size, start + budget)
        self._pool.computed(prompt.digests[first : prompt.num_computed // size])
        num_tokens = prompt.num_computed - start
        if prompt.num_computed == num_blocks * size:
            self._leave(FinishReason.PREFILLED)
        return num_tokens, start

    def take_ended(self) -> list[SequenceOutput]:
        """Return, once, what has ended since the last call."""
        ended, self._ended = self._ended, []
        return ended

    def clear(self) -> None:
        """Forget everything."""
        self._waiting.clear()
        self.give_way()
        self._ended.clear()

    def held(self) -> Counter[bytes]:
        """The blocks that are held."""
        return Counter(self._current.digests if self._current is not None else ())

    def _begin(self, prompt: _Prompt) -> None:
        num_cached = self._pool.match(prompt.digests)
        prompt.num_computed = num_cached * self._block_size
        if num_cached == len(prompt.digests):
            self._end(prompt.id, FinishReason.PREFILLED)
        elif not self._pool.fits_unretained(prompt.digests):
            self._end(prompt.id, FinishReason.ABORTED)
        else:
            self._pool.hold(prompt.digests, 0)
            self._current = prompt

    def _leave(self, reason: FinishReason) -> None:
        assert self._current is not None, "nothing is being computed ahead"
        self._pool.release(self._current.digests, 0)
        self._end(self._current.id, reason)
        self._current = None

    def _end(self, prompt_id: str, reason: FinishReason) -> None:
        self._ended.append(SequenceOutput(prompt_id, finish=reason))
