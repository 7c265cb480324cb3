"""What a request that comes next would find on an engine: room, memory, and when it would be done."""

from __future__ import annotations

import math

from parrot_mq.messages import CostModel, EngineRecord
from parrot_mq.scheduler.policy.books import Books

SIZES = ((256, 64), (1024, 512))
"""Prompt and output tokens of the requests that engines are ranked for; one is looked up in the nearer ranking."""
ROUND_TRIP_MS = 2.0
"""From a completion until the next request has arrived at the engine: what dispatching ahead has to bridge."""
MIN_STEP_MS = 0.05


class Outlook:
    """What follows for one request more from what an engine says and from what was dispatched to it (``books``).

    ``derive`` notes it after every change, since it is asked for more often than it changes. ``room`` is how many more
    requests may be given to the engine now: free slots, and what should start within about two steps.
    """

    __slots__ = (
        "_books", "_capacity_tokens", "_cost", "_next_step_ms", "_per_token_ms", "_queue_depth_steps",
        "_size_prefills_ms", "_slots", "_step_ms", "_wait", "kv_free_tokens", "prefill_until_ms", "room",
    )  # fmt: skip

    def __init__(self, books: Books, queue_depth_steps: float) -> None:
        self._books = books
        self._queue_depth_steps = queue_depth_steps
        self._cost = CostModel()
        self._slots = 1
        self._capacity_tokens = math.inf
        self.room = 0
        self.kv_free_tokens = math.inf
        self.prefill_until_ms = 0.0
        """When the prompts that were given to the engine should have been prefilled."""
        self._step_ms = 0.0
        # With one request more: a step, what each of its context tokens adds, and its part of a round of slots.
        self._next_step_ms = self._per_token_ms = self._wait = 0.0
        self._size_prefills_ms: tuple[tuple[float, float], ...] = ()

    def measure(self, record: EngineRecord, capacity_tokens: float) -> None:
        """Take in what the engine says about itself, before ``derive``."""
        self._cost, self._slots, self._capacity_tokens = record.cost, record.max_num_seqs, capacity_tokens
        cost = record.cost
        self._size_prefills_ms = tuple((cost.prefill_ms(prompt), cost.harm_ms(prompt)) for prompt, _ in SIZES)

    def derive(self, *, is_open: bool) -> None:
        """Note what follows from a change. An engine that is not open has no room."""
        books, cost, slots = self._books, self._cost, self._slots
        running = len(books.charges)
        self.kv_free_tokens = self._capacity_tokens - books.kv_tokens
        if running < slots:
            self._step_ms = cost.decode_step_ms(running, books.context_tokens, books.sharing.tokens)
            self._next_step_ms = self._step_ms + cost.decode_per_seq_ms
            self._per_token_ms, self._wait = cost.decode_per_context_token_ms, 0.0
            self.room = slots - running if is_open else 0
        else:
            after, context, shared = running + 1, books.context_tokens * slots, books.sharing.tokens * slots
            self._step_ms = cost.decode_step_ms(slots, context / running, shared / running)
            self._next_step_ms = cost.decode_step_ms(slots, context / after, shared / after)
            self._per_token_ms = cost.decode_per_context_token_ms * slots / after
            self._wait = (after - slots) / (slots * after)
            self.room = max(0, slots - running + self._ahead()) if is_open else 0

    def _ahead(self) -> int:
        # In s steps about s * slots / mean output slots come free; a fast engine needs the round trip bridged.
        books, slots = self._books, self._slots
        steps = max(self._queue_depth_steps, ROUND_TRIP_MS / max(MIN_STEP_MS, self._step_ms))
        return min(slots, math.ceil(steps * slots * len(books.charges) / max(1, books.output_tokens)))

    # Room -------------------------------------------------------------------------------------------------------------

    @property
    def headroom(self) -> float:
        """At most so many tokens (uncached prompt, and output) may a request have that is admitted here beside others:
        what KV memory and the promised time per token leave. Infinite for an empty engine, which admits anything.
        """
        books = self._books
        if not books.charges:
            return math.inf
        if not books.bound_ms:
            return self.kv_free_tokens
        return min(self.kv_free_tokens, self.tokens_within(books.bound_ms))

    def tokens_within(self, bound_ms: float) -> float:
        """Return how many context tokens one more request may bring for a step to take at most ``bound_ms``."""
        left_ms = bound_ms - self._next_step_ms
        if left_ms < 0:
            return -math.inf
        return left_ms / self._per_token_ms if self._per_token_ms > 0 else math.inf

    # Urgent requests, and throughput work -----------------------------------------------------------------------------

    def slowdown(self, more: int = 0) -> float:
        """Return how much longer a step of its urgent requests, and of ``more`` like them, is than that of one alone:
        0.1 is a tenth. 0 without urgent requests.
        """
        num, cost = self._books.num_urgent, self._cost
        if not num:
            return 0.0
        mean = self._books.urgent_context / num
        alone_ms = cost.decode_step_ms(1, mean)
        return cost.decode_step_ms(num + more, mean * (num + more)) / alone_ms - 1 if alone_ms else 0.0

    def busy(self, now_ms: float) -> float:
        """Return how busy throughput work keeps the engine: the part of what it computes that grows with the work. 1
        with a backlog of prompts; 0 without such work.
        """
        if not self._books.num_patient:
            return 0.0
        if self.prefill_until_ms > now_ms:
            return 1.0
        return 1 - self._cost.decode_base_ms / self._step_ms if self._step_ms else 0.0

    # Predictions ------------------------------------------------------------------------------------------------------

    def completion_ms(self, prompt: int, output: int, cached: int, shared: int, now_ms: float) -> float:
        """Predict how long one more request takes here, plus the delay that it is to urgent ones here.

        ``cached`` of its ``prompt`` tokens need no prefill; ``shared`` are read for something that runs here as well.
        """
        cost = self._cost
        uncached = prompt - cached if prompt > cached else 0
        prefill_ms = cost.prefill_ms(uncached, cached)
        step_ms = self._next_step_ms + self._per_token_ms * (prompt + output // 2 - cost.shared_saving * shared)
        wait_ms = self._wait * (self._books.output_tokens + output) * step_ms
        return self._total_ms(prefill_ms, prefill_ms - cost.hidden_ms(uncached), step_ms, wait_ms, output, now_ms)

    def completion_of_all_ms(
        self, count: int, prompt: int, output: int, cached: int, shared: int, common: int, now_ms: float
    ) -> float:
        """Predict the same as ``completion_ms`` for the last of ``count`` such requests that come at once.

        The first ``common`` of their prompt tokens are the same: computed once, and read for all of them.
        """
        cost, slots = self._cost, self._slots
        others, uncached = max(cached, common), max(0, prompt - cached)
        prefill_ms = cost.prefill_ms(uncached, cached) + (count - 1) * cost.prefill_ms(max(0, prompt - others), others)
        step_ms = self._step_with(count, count * (prompt + output // 2), shared + (count - 1) * max(shared, common))
        after, wait_ms = len(self._books.charges) + count, 0.0
        if after > slots:
            wait_ms = (after - slots) / slots * (self._books.output_tokens + count * output) / after * step_ms
        return self._total_ms(prefill_ms, prefill_ms - cost.hidden_ms(uncached), step_ms, wait_ms, output, now_ms)

    def scores_ms(self, now_ms: float) -> list[float]:
        """Return ``completion_ms`` of requests of each of ``SIZES`` that share nothing: what engines are ranked by."""
        wait, output_tokens, per_token_ms = self._wait, self._books.output_tokens, self._per_token_ms
        scores = []
        for (prompt, output), (prefill_ms, harm_ms) in zip(SIZES, self._size_prefills_ms, strict=True):
            step_ms = self._next_step_ms + per_token_ms * (prompt + output // 2)
            wait_ms = wait * (output_tokens + output) * step_ms if wait else 0.0
            scores.append(self._total_ms(prefill_ms, harm_ms, step_ms, wait_ms, output, now_ms))
        return scores

    def longer_ms(self, more_tokens: int) -> float:
        """Predict how much longer a step takes with one more request of so many context tokens."""
        return max(0.0, self._step_with(1, more_tokens, 0) - self._step_ms)

    def _step_with(self, more: int, more_tokens: int, more_shared: int) -> float:
        """Predict a step with so many more requests, of so many context tokens in all, running here."""
        books, slots = self._books, self._slots
        running = len(books.charges) + more
        tokens, shared = books.context_tokens + more_tokens, books.sharing.tokens + more_shared
        if running > slots:
            return self._cost.decode_step_ms(slots, tokens * slots / running, shared * slots / running)
        return self._cost.decode_step_ms(running, tokens, shared)

    def _total_ms(
        self, prefill_ms: float, harm_ms: float, step_ms: float, wait_ms: float, output: int, now_ms: float
    ) -> float:
        """Put a prediction together: the prompts ahead, the wait for a slot, prefill, decode, and the delay to others,
        ``harm_ms`` of it that of the prefill to each that decodes.
        """
        total_ms = wait_ms + prefill_ms + step_ms * output
        if self.prefill_until_ms > now_ms:
            total_ms += self.prefill_until_ms - now_ms
        books = self._books
        urgent = books.num_urgent
        if urgent:  # the delay to each of them: the prefill, and longer steps for as long as both run
            total_ms += urgent * harm_ms
            if step_ms > self._step_ms:
                total_ms += (step_ms - self._step_ms) * min(urgent * output, books.urgent_tokens)
        return total_ms
