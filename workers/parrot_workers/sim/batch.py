"""The sequences that a simulated engine runs, and the memory and context that they take."""

from __future__ import annotations

import bisect
import operator
from collections import Counter
from collections.abc import Iterator

from parrot_workers.sim.ahead import Ahead
from parrot_workers.sim.block_pool import BlockPool
from parrot_workers.sim.sequence import SimSequence
from parrot_workers.sim.shared_prefixes import SharedPrefixes

BY_ORDER = operator.attrgetter("order")


class Batch:
    """Sequences from their admission to their end: first amid their prompt, then one token a step.

    Each holds blocks of ``pool`` for its prompt and its longest output; ``ahead`` gives up its own for them.
    ``max_running_tokens`` bounds the sum of prompts and longest outputs, 0: the memory alone does; a sequence alone may
    exceed it.
    """

    def __init__(self, pool: BlockPool, ahead: Ahead, block_size: int, max_running_tokens: int) -> None:
        self._pool = pool
        self._ahead = ahead
        self._block_size = block_size
        self._max_running_tokens = max_running_tokens
        self._shared = SharedPrefixes(block_size)
        self._running_tokens = 0
        self.filling: list[SimSequence] = []
        """Amid their prompts; sorted by ``SimSequence.order``."""
        self.decoding: dict[str, SimSequence] = {}
        self.context_tokens = 0
        """Of the sequences that decode."""

    def __len__(self) -> int:
        return len(self.filling) + len(self.decoding)

    def __iter__(self) -> Iterator[SimSequence]:
        yield from self.filling
        yield from self.decoding.values()

    @property
    def shared_tokens(self) -> int:
        """Of the context, those that are read for another sequence as well."""
        return self._shared.num_tokens

    def find(self, sequence_id: str) -> SimSequence | None:
        """Return the sequence with this id."""
        if (decoding := self.decoding.get(sequence_id)) is not None:
            return decoding
        return next((sequence for sequence in self.filling if sequence.id == sequence_id), None)

    def fits(self, sequence: SimSequence) -> bool:
        """Whether there is room for one more; prompts computed ahead make room."""
        limit = self._max_running_tokens
        if limit and self._running_tokens and self._running_tokens + sequence.max_tokens > limit:
            return False
        while not self._pool.fits(sequence.digests, sequence.num_private):
            if not self._ahead.give_way():
                return False
        return True

    def admit(self, sequence: SimSequence) -> None:
        """Take a sequence in that fits; what is cached of its prompt is computed already."""
        self._pool.hold(sequence.digests, sequence.num_private)
        self._running_tokens += sequence.max_tokens
        # The last token is always computed: its logits are what the first output is drawn from.
        cached = self._pool.match(sequence.digests) * self._block_size
        sequence.num_computed = sequence.num_cached = min(cached, sequence.num_prompt_tokens - 1)
        bisect.insort(self.filling, sequence, key=BY_ORDER)

    def prefill(self, sequence: SimSequence, budget: int) -> tuple[int, int]:
        """Compute a piece of a prompt; returns its tokens, and how many lie before them."""
        start, size = sequence.num_computed, self._block_size
        part = max(0, min(budget, sequence.num_to_prefill))
        sequence.num_computed += part
        self._pool.computed(sequence.digests[start // size : sequence.num_computed // size])
        return part, start

    def begin_to_decode(self, sequence: SimSequence) -> None:
        """The prompt is computed, and the first token is about to be said."""
        self.filling.remove(sequence)
        self.decoding[sequence.id] = sequence
        self._shared.join(sequence.digests)
        self.context_tokens += sequence.context + bool(sequence.num_done < len(sequence.script.token_ids))

    def decode(self) -> list[SimSequence]:
        """Return those that decode: each is about to say a token more."""
        self.context_tokens += len(self.decoding)
        return list(self.decoding.values())

    def leave(self, sequence: SimSequence) -> None:
        """Take a sequence out, and its blocks back."""
        if self.decoding.pop(sequence.id, None) is not None:
            self._shared.leave(sequence.digests)
            self.context_tokens -= sequence.context
        else:
            self.filling.remove(sequence)
        self._running_tokens -= sequence.max_tokens
        self._pool.release(sequence.digests, sequence.num_private)

    def check(self) -> None:
        """Raise AssertionError if the books do not agree with the sequences."""
        held = self._ahead.held()
        for sequence in self:
            held.update(sequence.digests)
        self._pool.check(held, sum(sequence.num_private for sequence in self))
        context = sum(sequence.context for sequence in self.decoding.values())
        assert context == self.context_tokens, f"{self.context_tokens} tokens of context, sequences have {context}"
        tokens = sum(sequence.max_tokens for sequence in self)
        assert tokens == self._running_tokens, f"{self._running_tokens} tokens run, sequences have {tokens}"
        readers = Counter(digest for sequence in self.decoding.values() for digest in sequence.digests)
        shared = (readers.total() - len(readers)) * self._block_size
        assert shared == self._shared.num_tokens, f"{self._shared.num_tokens} tokens are shared, not {shared}"
