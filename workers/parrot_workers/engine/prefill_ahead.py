"""Prompts whose keys and values are computed before anybody asks for an answer, in what the others leave over."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from parrot_workers.engine.block_manager import BlockManager
from parrot_workers.engine.port import FinishReason
from parrot_workers.engine.sequence import Sequence, SequenceStatus

MAX_WAITING = 64
"""Hints that wait; more are not taken, for what comes so late would be no help."""
MEMORY_FRACTION = 0.25
"""Of all blocks, those that a prompt may be computed into; what is longer is computed as far as that."""


class PrefillAhead:
    """One prompt at a time, first come, first served, into blocks that nobody holds and no hint retains.

    Only full blocks are computed, for only those are found again; they stay in the cache, with no holder. A prompt
    whose blocks a running sequence needs, or that finds none itself, is given up: what was computed of it stays cached
    like anything else. A sequence that ends this way has its ``finish`` set: PREFILLED or ABORTED.
    """

    def __init__(self, blocks: BlockManager) -> None:
        self._blocks = blocks
        self._max_blocks = max(1, int(blocks.num_blocks * MEMORY_FRACTION))
        self._waiting: deque[Sequence] = deque()
        self._current: Sequence | None = None
        self._ended: list[Sequence] = []

    def __iter__(self) -> Iterator[Sequence]:
        """Go through the sequences that have not ended."""
        if self._current is not None:
            yield self._current
        yield from self._waiting

    def __len__(self) -> int:
        """Sequences that have not ended."""
        return (self._current is not None) + len(self._waiting)

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence is self._current or sequence in self._waiting

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence, cut to the full blocks that may be computed. Without a prefix cache none is of use."""
        size = self._blocks.block_size
        count = min(sequence.num_tokens // size, self._max_blocks)
        del sequence.token_ids[count * size :]
        sequence.num_prompt_tokens = sequence.num_tokens
        if self._blocks.enable_prefix_caching and len(self._waiting) < MAX_WAITING:
            self._waiting.append(sequence)
        else:
            self._end(sequence, FinishReason.ABORTED)

    def next(self, budget: int) -> Sequence | None:
        """Return the sequence to compute up to ``budget`` tokens of, its blocks allotted; None: there is nothing."""
        if self._current is not None and self._blocks.has_next(self._current):
            # Somebody is computing the same prompt: begin again from all that is there by now.
            self._waiting.appendleft(self._current)
            self._let_go(self._current)
        while budget > 0 and self._current is None and self._waiting:
            self._begin(self._waiting.popleft())
        return self._current if budget > 0 else None

    def give_way(self) -> bool:
        """Give up the sequence that holds blocks; False if there is none."""
        if self._current is None:
            return False
        self._end(self._current, FinishReason.ABORTED)
        return True

    def restart(self) -> None:
        """Forget what was computed, and compute it again."""
        if self._current is not None:
            self._waiting.appendleft(self._current)
            self._let_go(self._current)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is, and its blocks back."""
        if sequence is self._current:
            self._let_go(sequence)
        else:
            self._waiting.remove(sequence)

    def take_ended(self) -> list[Sequence]:
        """Return, once, the sequences that have ended since the last call."""
        if self._current is not None and not self._current.num_uncomputed_tokens:
            self._end(self._current, FinishReason.PREFILLED)
        ended, self._ended = self._ended, []
        return ended

    def _begin(self, sequence: Sequence) -> None:
        prefix = self._blocks.match(sequence, whole=True)
        lacking = self._blocks.num_blocks_for(sequence.num_tokens) - len(prefix)
        if not lacking and None not in prefix:
            self._end(sequence, FinishReason.PREFILLED)
        elif lacking > self._blocks.num_unretained_after_hold(prefix):
            self._end(sequence, FinishReason.ABORTED)
        else:
            self._blocks.hold(sequence, prefix)
            self._blocks.grow(sequence, sequence.num_tokens)
            sequence.num_computed_tokens = sequence.num_cached_tokens = len(prefix) * self._blocks.block_size
            sequence.status = SequenceStatus.RUNNING
            self._current = sequence

    def _let_go(self, sequence: Sequence) -> None:
        self._blocks.release(sequence)
        sequence.num_computed_tokens = 0
        sequence.status = SequenceStatus.WAITING
        if sequence is self._current:
            self._current = None

    def _end(self, sequence: Sequence, reason: FinishReason) -> None:
        self._let_go(sequence)
        sequence.finish = reason
        sequence.status = SequenceStatus.FINISHED
        self._ended.append(sequence)
