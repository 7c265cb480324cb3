"""An engine as the policy sees it: what it runs, what it will cost to run one more, when that would be done."""

from __future__ import annotations

import math
from collections.abc import Callable

from parrot_mq.messages import EngineRecord, EngineState, ObjectiveKind
from parrot_mq.scheduler.nodes import RequestNode
from parrot_mq.scheduler.policy.books import Books, Charge, is_patient, is_throughput, is_urgent, tpot_ms
from parrot_mq.scheduler.policy.pacing import Pacing
from parrot_mq.scheduler.policy.prefix import Boundary
from parrot_mq.scheduler.policy.residency import Holders, Residency

SIZES = ((256, 64), (1024, 512))
"""Prompt and output tokens of the requests that engines are ranked for; one is looked up in the nearer ranking."""
ROUND_TRIP_MS = 2.0
"""From a completion until the next request has arrived at the engine: what dispatching ahead has to bridge."""
MIN_STEP_MS = 0.05


class EngineLoad:
    """One engine: its newest heartbeat, and the requests that were dispatched to it and are not finished.

    Requests are counted from dispatch to the hint that they ended, so that load is exact between heartbeats.
    ``changed`` is called after every change (a ``Fleet`` ranks the engine anew). Without ``affinity`` nothing counts as
    cached.
    """

    __slots__ = (
        "_affinity", "_books", "_bound_ms", "_changed", "_kv_free_tokens", "_next_step_ms", "_next_wait", "_pacing",
        "_per_token_ms", "_prefill_until_ms", "_queue_depth_steps", "_residency", "_room", "_size_prefills_ms",
        "_step_ms", "_suspended", "id", "record",
    )  # fmt: skip

    def __init__(
        self,
        engine_id: str,
        queue_depth_steps: float = 2.0,
        *,
        affinity: bool = True,
        holders: Holders | None = None,
        changed: Callable[[EngineLoad], None] = lambda _: None,
    ) -> None:
        self.id = engine_id
        self.record: EngineRecord | None = None
        self._suspended = False
        self._queue_depth_steps = queue_depth_steps
        self._affinity = affinity
        self._changed = changed
        self._books = Books()
        self._residency = Residency(engine_id, holders if holders is not None else Holders())
        self._pacing = Pacing()
        self._prefill_until_ms = 0.0
        self._step_ms = self._next_step_ms = self._per_token_ms = self._next_wait = 0.0
        self._size_prefills_ms: tuple[float, ...] = ()
        self._derive()

    # What it says, and what it has ------------------------------------------------------------------------------------

    def update(self, record: EngineRecord | None) -> None:
        """Take a new heartbeat; None: it has none any more."""
        self.record = record
        self._suspended = False
        if record is not None:
            self._residency.report(record.resident)
            self._size_prefills_ms = tuple(record.cost.prefill_ms(prompt) for prompt, _ in SIZES)
        self._derive()

    def forget(self) -> None:
        """The engine is gone for good."""
        self._residency.clear()
        self.update(None)

    @property
    def suspended(self) -> bool:
        """The store refused a dispatch to it: nothing more until its next heartbeat is read."""
        return self._suspended

    @suspended.setter
    def suspended(self, suspended: bool) -> None:
        self._suspended = suspended
        self._derive()

    @property
    def model(self) -> str:
        """The model it serves."""
        return self.record.model if self.record is not None else ""

    @property
    def num_outstanding(self) -> int:
        """Requests dispatched to it and not finished."""
        return len(self._books.charges)

    @property
    def outstanding(self) -> list[str]:
        """Their ids, oldest dispatch first."""
        return list(self._books.charges)

    # Room -------------------------------------------------------------------------------------------------------------

    @property
    def num_free_slots(self) -> int:
        """How many more requests would run at once."""
        return 0 if self.record is None else max(0, self.record.max_num_seqs - len(self._books.charges))

    @property
    def num_spare(self) -> int:
        """How many requests it could be given unseen: half of its free slots, while at least half of its KV memory is
        free too and no time per token was promised to anybody.
        """
        if self.record is None or self._suspended or self._bound_ms:
            return 0
        if 2 * self._books.kv_tokens > self.capacity_tokens:
            return 0
        return (self.num_free_slots + 1) // 2

    @property
    def room(self) -> int:
        """How many more requests it may be given now: free slots, and what should start within about two steps."""
        return self._room

    @property
    def bound_ms(self) -> int:
        """The least time per token that a request here was promised; 0: none."""
        return self._bound_ms

    @property
    def capacity_tokens(self) -> float:
        """Tokens that its KV memory holds; infinite if it does not say."""
        record = self.record
        return record.num_blocks * record.block_size if record is not None and record.num_blocks else math.inf

    @property
    def headroom(self) -> float:
        """At most so many tokens (uncached prompt, and output) may a request have that is admitted here beside others:
        what KV memory and the promised time per token leave. Infinite for an empty engine, which admits anything.
        """
        if not self._books.charges:
            return math.inf
        return (
            min(self._kv_free_tokens, self._tokens_within(self._bound_ms)) if self._bound_ms else self._kv_free_tokens
        )

    def _tokens_within(self, bound_ms: float) -> float:
        """Return how many context tokens one more request may bring for a step to take at most ``bound_ms``."""
        left_ms = bound_ms - self._next_step_ms
        if left_ms < 0:
            return -math.inf
        return left_ms / self._per_token_ms if self._per_token_ms > 0 else math.inf

    def admits(self, node: RequestNode, now_ms: float) -> bool:
        """Whether ``node`` may start here without hurting what runs: room, KV memory, the time per token that requests
        with such an objective were promised, and for throughput work its pace beside urgent requests. An empty engine
        admits anything: only it can say what is too large.
        """
        cached, shared = self._known(node, now_ms)
        return self._admits(node, cached, shared, now_ms)

    def _admits(self, node: RequestNode, cached: int, shared: int, now_ms: float) -> bool:
        record, books = self.record, self._books
        if self._room <= 0 or record is None or (node.model and node.model != record.model):
            return False
        if not books.charges:
            return True
        if not self._has_memory_for(node, cached):
            return False
        objective, bound_ms = node.objective, self._bound_ms
        kind = objective.kind if objective is not None else None
        if kind is ObjectiveKind.TPOT:
            own_ms = tpot_ms(node)
            if own_ms and not 0 < bound_ms < own_ms:
                bound_ms = own_ms
        elif kind in (None, ObjectiveKind.THROUGHPUT) and books.num_urgent and self.paced_until_ms(now_ms) > now_ms:
            return False
        tokens = node.prompt_tokens + node.output_tokens - record.cost.shared_saving * shared
        return not bound_ms or tokens <= self._tokens_within(bound_ms)

    def has_memory_for(self, node: RequestNode, now_ms: float) -> bool:
        """Whether the KV memory that is left takes ``node`` in."""
        return self._has_memory_for(node, self.cached_tokens(node, now_ms))

    def _has_memory_for(self, node: RequestNode, cached: int) -> bool:
        return node.prompt_tokens - cached + node.reserved_tokens <= self._kv_free_tokens

    def paced_until_ms(self, now_ms: float) -> float:
        """Until when throughput work is held off here for the sake of urgent requests; ``now_ms`` if it is not."""
        books, record = self._books, self.record
        if not books.num_urgent or record is None:
            return now_ms
        alone_ms = record.cost.decode_step_ms(books.num_urgent, books.urgent_context)
        burst_ms = books.urgent_tokens / books.num_urgent * alone_ms
        return max(now_ms, self._pacing.opens_ms(burst_ms))

    # Predictions ------------------------------------------------------------------------------------------------------

    def cached_tokens(self, node: RequestNode, now_ms: float) -> int:
        """Estimate how many tokens of the prompt of ``node`` need no prefill here."""
        if not self._affinity:
            return 0
        cached = self._residency.cached_tokens(node.prefix, now_ms) if node.prefix else 0
        if node.planned_engine == self.id:
            return max(cached, min(node.planned_tokens, node.prompt_tokens))
        return cached

    def _known(self, node: RequestNode, now_ms: float) -> tuple[int, int]:
        """Return how much of the prompt is cached here, and how much of that something that runs here reads as well."""
        if not self._residency.may_hold(node.prefix) and node.planned_engine != self.id:
            return 0, 0
        cached = self.cached_tokens(node, now_ms)
        return cached, self._books.sharing.shared_with(node.prefix) if cached else 0

    def expect(self, prefix: tuple[Boundary, ...], now_ms: float) -> None:
        """The engine was told to prefill a prompt that begins with ``prefix``: it counts as resident."""
        self._residency.assign(prefix, now_ms)

    def predict(self, node: RequestNode, now_ms: float) -> float | None:
        """Return ``completion_ms`` of ``node`` if it is admitted here, else None."""
        cached, shared = self._known(node, now_ms)
        if not self._admits(node, cached, shared, now_ms):
            return None
        return self._next_completion_ms(node.prompt_tokens, node.output_tokens, cached, shared, now_ms)

    def scores_ms(self, now_ms: float) -> tuple[float, ...]:
        """Return ``completion_ms`` of requests of each of ``SIZES`` that share nothing: what engines are ranked by."""
        wait, output_tokens, per_token_ms = self._next_wait, self._books.output_tokens, self._per_token_ms
        scores = []
        for (prompt, output), prefill_ms in zip(SIZES, self._size_prefills_ms, strict=True):
            step_ms = self._next_step_ms + per_token_ms * (prompt + output // 2)
            wait_ms = wait * (output_tokens + output) * step_ms if wait else 0.0
            scores.append(self._total_ms(prefill_ms, step_ms, wait_ms, output, now_ms))
        return tuple(scores)

    @property
    def num_urgent(self) -> int:
        """How many of its requests somebody waits for in person."""
        return self._books.num_urgent

    def slowdown(self, more: int = 0) -> float:
        """Return how much longer a step of its urgent requests, and of ``more`` like them, is than that of one alone:
        0.1 is a tenth. 0 without urgent requests.
        """
        record, num = self.record, self._books.num_urgent
        if record is None or not num:
            return 0.0
        mean = self._books.urgent_context / num
        alone_ms = record.cost.decode_step_ms(1, mean)
        return record.cost.decode_step_ms(num + more, mean * (num + more)) / alone_ms - 1 if alone_ms else 0.0

    def busy(self, now_ms: float) -> float:
        """Return how busy throughput work keeps it: the part of what it computes that grows with the work. 1 with a
        backlog of prompts; 0 without such work.
        """
        if self.record is None or not self._books.num_patient:
            return 0.0
        if self._prefill_until_ms > now_ms:
            return 1.0
        return 1 - self.record.cost.decode_base_ms / self._step_ms if self._step_ms else 0.0

    def completion_ms(self, node: RequestNode, now_ms: float, *, count: int = 1, shared_tokens: int = 0) -> float:
        """Predict how long ``count`` requests like ``node`` take here, plus the delay they are to urgent ones here.

        ``shared_tokens`` of their prompts are the same in all of them: computed once, and read once in each step by an
        engine whose attention can.
        """
        prompt, output = node.prompt_tokens, node.output_tokens
        cached, shared = self._known(node, now_ms)
        if count == 1:
            return self._next_completion_ms(prompt, output, cached, shared, now_ms)
        assert self.record is not None
        prefill = self.record.cost.prefill_ms
        others = max(cached, shared_tokens)
        prefill_ms = prefill(max(0, prompt - cached), cached) + (count - 1) * prefill(max(0, prompt - others), others)
        shared += (count - 1) * max(shared, shared_tokens)
        step_ms = self._step_with(count, count * (prompt + output // 2), shared)
        slots, after = self.record.max_num_seqs, len(self._books.charges) + count
        wait_ms = 0.0
        if after > slots:
            wait_ms = (after - slots) / slots * (self._books.output_tokens + count * output) / after * step_ms
        return self._total_ms(prefill_ms, step_ms, wait_ms, output, now_ms)

    def _next_completion_ms(self, prompt: int, output: int, cached: int, shared: int, now_ms: float) -> float:
        record = self.record
        assert record is not None
        prefill_ms = record.cost.prefill_ms(prompt - cached if prompt > cached else 0, cached)
        context = prompt + output // 2 - record.cost.shared_saving * shared
        step_ms = self._next_step_ms + self._per_token_ms * context
        wait_ms = self._next_wait * (self._books.output_tokens + output) * step_ms
        return self._total_ms(prefill_ms, step_ms, wait_ms, output, now_ms)

    def _total_ms(self, prefill_ms: float, step_ms: float, wait_ms: float, output: int, now_ms: float) -> float:
        total_ms = wait_ms + prefill_ms + step_ms * output
        if self._prefill_until_ms > now_ms:
            total_ms += self._prefill_until_ms - now_ms
        books = self._books
        urgent = books.num_urgent
        if urgent:  # the delay to each of them: the prefill, and longer steps for as long as both run
            total_ms += urgent * prefill_ms
            if step_ms > self._step_ms:
                total_ms += (step_ms - self._step_ms) * min(urgent * output, books.urgent_tokens)
        return total_ms

    @property
    def prefill_until_ms(self) -> float:
        """When the prompts that were given to it should have been prefilled."""
        return self._prefill_until_ms

    def _step_with(self, more: int, more_tokens: int, more_shared: int) -> float:
        """Predict a step with so many more requests, of so many context tokens in all, running here."""
        record, books = self.record, self._books
        assert record is not None
        running, slots = len(books.charges) + more, record.max_num_seqs
        tokens, shared = books.context_tokens + more_tokens, books.sharing.tokens + more_shared
        if running > slots:
            return record.cost.decode_step_ms(slots, tokens * slots / running, shared * slots / running)
        return record.cost.decode_step_ms(running, tokens, shared)

    # Books ------------------------------------------------------------------------------------------------------------

    def charge(self, node: RequestNode, now_ms: float) -> None:
        """Count ``node`` as dispatched here."""
        books = self._books
        if node.id in books.charges:
            return
        prompt, output = node.prompt_tokens, node.output_tokens
        cached = self.cached_tokens(node, now_ms)
        uncached = max(0, prompt - cached)
        prefix = node.prefix if self._affinity else ()
        charge = Charge(
            prompt + output // 2,
            output,
            uncached + node.reserved_tokens,
            is_urgent(node),
            is_patient(node),
            tpot_ms(node),
            prefix,
        )
        if self.record is not None:
            prefill_ms = self.record.cost.prefill_ms(uncached, cached)
            self._prefill_until_ms = max(now_ms, self._prefill_until_ms) + prefill_ms
            if books.num_urgent and is_throughput(node):
                longer_ms = max(0.0, self._step_with(1, charge.context_tokens, 0) - self._step_ms)
                mean_urgent = books.urgent_tokens / books.num_urgent
                harm_ms = self.record.cost.harm_in_pieces_ms(uncached, cached)
                self._pacing.add(harm_ms + longer_ms * min(output, mean_urgent), now_ms, self.slowdown())
        books.add(node.id, charge)
        if prefix:
            self._residency.assign(prefix, now_ms)
        self._derive()

    def restate(self, node: RequestNode) -> None:
        """The objective of a request that is here has changed."""
        if node.id in self._books.charges:
            self._books.restate(node.id, urgent=is_urgent(node), tpot_ms=tpot_ms(node))
            self._derive()

    def discharge(self, request_id: str) -> bool:
        """Take a request off: it is finished, or was given back. False if it was not counted here."""
        if not self._books.remove(request_id):
            return False
        if not self._books.charges:
            self._prefill_until_ms = 0.0
        if not self._books.num_urgent:
            self._pacing.clear()
        self._derive()
        return True

    def _derive(self) -> None:
        """Note what follows from a change and is asked for often, and tell of the change."""
        record, books = self.record, self._books
        self._bound_ms = books.bound_ms
        self._kv_free_tokens = self.capacity_tokens - books.kv_tokens
        self._room = 0
        if record is not None:
            running, slots = len(books.charges), record.max_num_seqs
            cost = record.cost
            # With one request more: a step, what each of its context tokens adds, and its part of a round of slots.
            if running < slots:
                self._step_ms = cost.decode_step_ms(running, books.context_tokens, books.sharing.tokens)
                self._next_step_ms = self._step_ms + cost.decode_per_seq_ms
                self._per_token_ms, self._next_wait = cost.decode_per_context_token_ms, 0.0
            else:
                self._step_ms, self._next_step_ms = self._step_with(0, 0, 0), self._step_with(1, 0, 0)
                self._per_token_ms = cost.decode_per_context_token_ms * slots / (running + 1)
                self._next_wait = (running + 1 - slots) / (slots * (running + 1))
            if record.state is EngineState.READY and not self._suspended:
                self._room = slots - running if slots > running else max(0, slots - running + self._ahead())
        self._changed(self)

    def _ahead(self) -> int:
        # In s steps about s * slots / mean output slots come free; a fast engine needs the round trip bridged.
        assert self.record is not None
        slots = self.record.max_num_seqs
        steps = max(self._queue_depth_steps, ROUND_TRIP_MS / max(MIN_STEP_MS, self._step_ms))
        return min(slots, math.ceil(steps * slots * len(self._books.charges) / max(1, self._books.output_tokens)))
