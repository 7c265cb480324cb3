"""An engine as the policy sees it: what it says, what was dispatched to it, and what it takes."""

from __future__ import annotations

import math
from collections.abc import Callable

from parrot_mq.messages import EngineRecord, EngineState
from parrot_mq.scheduler.nodes import RequestNode
from parrot_mq.scheduler.policy.books import Books, Charge, is_patient, is_urgent, tpot_ms
from parrot_mq.scheduler.policy.outlook import Outlook
from parrot_mq.scheduler.policy.pacing import Pacing
from parrot_mq.scheduler.policy.residency import Holders, Residency


class EngineLoad:
    """One engine: its newest heartbeat, and the requests that were dispatched to it and are not finished.

    Requests are counted from dispatch to the hint that they ended, so that load is exact between heartbeats.
    ``changed`` is called after every change (a ``Fleet`` ranks the engine anew). Without ``affinity`` nothing counts as
    cached.
    """

    __slots__ = (
        "_affinity", "_books", "_changed", "_holders", "_pacing", "_residency", "_suspended", "id", "outlook", "record",
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
        self._affinity = affinity
        self._changed = changed
        self._books = Books()
        self._holders = holders if holders is not None else Holders()
        self._residency = Residency(engine_id, self._holders)
        self._pacing = Pacing()
        self.outlook = Outlook(self._books, queue_depth_steps)
        self._derive()

    # What it says, and what it has ------------------------------------------------------------------------------------

    def update(self, record: EngineRecord | None) -> None:
        """Take a new heartbeat; None: it has none any more."""
        before, self.record = self.record, record
        if record is not None:
            self._residency.report(record.resident)
            if not self._suspended and before is not None and _is_alike(before, record):
                return
            self.outlook.measure(record, self.capacity_tokens)
        self._suspended = False
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

    @property
    def bound_ms(self) -> int:
        """The least time per token that a request here was promised; 0: none."""
        return self._books.bound_ms

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
        if self.record is None or self._suspended or self._books.bound_ms:
            return 0
        if 2 * self._books.kv_tokens > self.capacity_tokens:
            return 0
        return (self.num_free_slots + 1) // 2

    @property
    def room(self) -> int:
        """How many more requests it may be given now: free slots, and what should start within about two steps."""
        return self.outlook.room

    @property
    def capacity_tokens(self) -> float:
        """Tokens that its KV memory holds; infinite if it does not say."""
        record = self.record
        return record.num_blocks * record.block_size if record is not None and record.num_blocks else math.inf

    @property
    def headroom(self) -> float:
        """At most so many tokens (uncached prompt, and output) may a request have that is admitted here beside others;
        infinite for an empty engine, which admits anything.
        """
        return self.outlook.headroom

    def admits(self, node: RequestNode, now_ms: float) -> bool:
        """Whether ``node`` may start here without hurting what runs: room, KV memory, the time per token that requests
        with such an objective were promised, and for throughput work its pace beside urgent requests. An empty engine
        admits anything: only it can say what is too large.
        """
        cached, shared = self._known(node, now_ms)
        return self._admits(node, cached, shared, now_ms)

    def _admits(self, node: RequestNode, cached: int, shared: int, now_ms: float) -> bool:
        record, books, outlook = self.record, self._books, self.outlook
        if outlook.room <= 0 or record is None or (node.model and node.model != record.model):
            return False
        if not books.charges:
            return True
        if node.prompt_tokens - cached + node.reserved_tokens > outlook.kv_free_tokens:
            return False
        if books.num_urgent and not is_urgent(node) and self.paced_until_ms(now_ms) > now_ms:
            return False
        bound_ms, own_ms = books.bound_ms, tpot_ms(node)
        if own_ms and not 0 < bound_ms < own_ms:
            bound_ms = own_ms
        if not bound_ms:
            return True
        tokens = node.prompt_tokens + node.output_tokens - record.cost.shared_saving * shared
        return tokens <= outlook.tokens_within(bound_ms)

    def has_memory_for(self, node: RequestNode, now_ms: float) -> bool:
        """Whether the KV memory that is left takes ``node`` in."""
        need = node.prompt_tokens - self.cached_tokens(node, now_ms) + node.reserved_tokens
        return need <= self.outlook.kv_free_tokens

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
        cached = self._holders.cached_tokens(node.prefix, self.id, now_ms)
        if node.planned_engine == self.id:
            return max(cached, min(node.planned_tokens, node.prompt_tokens))
        return cached

    def _known(self, node: RequestNode, now_ms: float) -> tuple[int, int]:
        """Return how much of the prompt is cached here, and how much of that something that runs here reads as well."""
        cached = self.cached_tokens(node, now_ms)
        return (cached, self._books.sharing.shared_with(node.prefix)) if cached else (0, 0)

    def predict(self, node: RequestNode, now_ms: float) -> float | None:
        """Return ``completion_ms`` of ``node`` if it is admitted here, else None."""
        cached, shared = self._known(node, now_ms)
        if not self._admits(node, cached, shared, now_ms):
            return None
        return self.outlook.completion_ms(node.prompt_tokens, node.output_tokens, cached, shared, now_ms)

    @property
    def num_urgent(self) -> int:
        """How many of its requests somebody waits for in person."""
        return self._books.num_urgent

    def completion_ms(self, node: RequestNode, now_ms: float, *, count: int = 1, shared_tokens: int = 0) -> float:
        """Predict how long ``count`` requests like ``node`` take here, plus the delay they are to urgent ones here.

        ``shared_tokens`` of their prompts are the same in all of them: computed once, and read once in each step by an
        engine whose attention can.
        """
        prompt, output = node.prompt_tokens, node.output_tokens
        cached, shared = self._known(node, now_ms)
        if count == 1:
            return self.outlook.completion_ms(prompt, output, cached, shared, now_ms)
        return self.outlook.completion_of_all_ms(count, prompt, output, cached, shared, shared_tokens, now_ms)

    # Books ------------------------------------------------------------------------------------------------------------

    def charge(self, node: RequestNode, now_ms: float) -> None:
        """Count ``node`` as dispatched here."""
        books, outlook = self._books, self.outlook
        if node.id in books.charges:
            return
        prompt, output, urgent = node.prompt_tokens, node.output_tokens, is_urgent(node)
        cached = self.cached_tokens(node, now_ms)
        uncached = max(0, prompt - cached)
        prefix = node.prefix if self._affinity else ()
        charge = Charge(
            prompt + output // 2,
            output,
            uncached + node.reserved_tokens,
            urgent,
            is_patient(node),
            tpot_ms(node),
            prefix,
        )
        if self.record is not None:
            prefill_ms = self.record.cost.prefill_ms(uncached, cached)
            outlook.prefill_until_ms = max(now_ms, outlook.prefill_until_ms) + prefill_ms
            if books.num_urgent and not urgent:
                longer_ms = outlook.longer_ms(charge.context_tokens)
                mean_urgent = books.urgent_tokens / books.num_urgent
                harm_ms = self.record.cost.harm_in_pieces_ms(uncached, cached)
                self._pacing.add(harm_ms + longer_ms * min(output, mean_urgent), now_ms, outlook.slowdown())
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
        books = self._books
        if not books.remove(request_id):
            return False
        if not books.charges:
            self.outlook.prefill_until_ms = 0.0
        if not books.num_urgent:
            self._pacing.clear()
        self._derive()
        return True

    def _derive(self) -> None:
        """Note what follows from a change, and tell of the change."""
        record = self.record
        self.outlook.derive(is_open=record is not None and record.state is EngineState.READY and not self._suspended)
        self._changed(self)


def _is_alike(before: EngineRecord, record: EngineRecord) -> bool:
    """Whether nothing follows from the newer of two heartbeats that does not from the other."""
    return (
        before.state is record.state
        and before.max_num_seqs == record.max_num_seqs
        and before.num_blocks == record.num_blocks
        and before.block_size == record.block_size
        and before.model == record.model
        and before.cost == record.cost
    )
