"""An engine as the policy sees it: what it runs, what it will cost to run one more, when that would be done."""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections.abc import Callable

from parrot_mq.messages import EngineRecord, EngineState, ObjectiveKind
from parrot_mq.scheduler.nodes import RequestNode
from parrot_mq.scheduler.policy.pacing import Pacing
from parrot_mq.scheduler.policy.prefix import Boundary
from parrot_mq.scheduler.policy.residency import Holders, Residency
from parrot_mq.scheduler.policy.sharing import Sharing

ROUND_TRIP_MS = 2.0
"""From a completion until the next request has arrived at the engine: what dispatching ahead has to bridge."""
MIN_STEP_MS = 0.05


@dataclasses.dataclass(slots=True)
class Charge:
    """What one outstanding request adds to its engine's load."""

    context_tokens: int
    output_tokens: int
    kv_tokens: int
    urgent: bool
    tpot_ms: int
    prefix: tuple[Boundary, ...]


class EngineLoad:
    """One engine: its newest heartbeat, and the requests that were dispatched to it and are not finished.

    Requests are counted from dispatch to the hint that they ended, so that load is exact between heartbeats.
    ``changed`` is called after every change (a ``Fleet`` ranks the engine anew). Without ``affinity`` nothing counts as
    cached.
    """

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
        self._charges: dict[str, Charge] = {}
        self._bounds: list[tuple[int, str]] = []
        self._context_tokens = self._output_tokens = self._kv_tokens = 0
        self._num_urgent = self._urgent_tokens = 0
        self._residency = Residency(engine_id, holders if holders is not None else Holders())
        self._sharing = Sharing()
        self._pacing = Pacing()
        self._prefill_until_ms = 0.0

    # What it says, and what it has ------------------------------------------------------------------------------------

    def update(self, record: EngineRecord | None) -> None:
        """Take a new heartbeat; None: it has none any more."""
        self.record = record
        self._suspended = False
        if record is not None:
            self._residency.report(record.resident)
        self._changed(self)

    def forget(self) -> None:
        """The engine is gone for good."""
        self.record = None
        self._residency.clear()
        self._changed(self)

    @property
    def suspended(self) -> bool:
        """The store refused a dispatch to it: nothing more until its next heartbeat is read."""
        return self._suspended

    @suspended.setter
    def suspended(self, suspended: bool) -> None:
        self._suspended = suspended
        self._changed(self)

    @property
    def model(self) -> str:
        """The model it serves."""
        return self.record.model if self.record is not None else ""

    @property
    def num_outstanding(self) -> int:
        """Requests dispatched to it and not finished."""
        return len(self._charges)

    @property
    def outstanding(self) -> list[str]:
        """Their ids, oldest dispatch first."""
        return list(self._charges)

    @property
    def num_urgent(self) -> int:
        """How many of them somebody waits for in person: all with an objective but THROUGHPUT."""
        return self._num_urgent

    # Room -------------------------------------------------------------------------------------------------------------

    @property
    def num_free_slots(self) -> int:
        """How many more requests would run at once."""
        return 0 if self.record is None else max(0, self.record.max_num_seqs - len(self._charges))

    @property
    def num_spare(self) -> int:
        """How many requests it could be given unseen: half of its free slots, while at least half of its KV memory is
        free too and no time per token was promised to anybody.
        """
        record = self.record
        if record is None or self._suspended or self.bound_ms:
            return 0
        if record.num_blocks and 2 * self._kv_tokens > record.num_blocks * record.block_size:
            return 0
        return (self.num_free_slots + 1) // 2

    @property
    def room(self) -> int:
        """How many more requests it may be given now: free slots, and what should start within about two steps."""
        record = self.record
        if record is None or self._suspended or record.state is not EngineState.READY:
            return 0
        free = record.max_num_seqs - len(self._charges)
        return free if free > 0 else max(0, free + self._ahead())

    def _ahead(self) -> int:
        # In s steps about s * slots / mean output slots come free; a fast engine needs the round trip bridged.
        assert self.record is not None
        slots = self.record.max_num_seqs
        step_ms = max(MIN_STEP_MS, self._step_ms())
        steps = max(self._queue_depth_steps, ROUND_TRIP_MS / step_ms)
        return min(slots, math.ceil(steps * slots * len(self._charges) / max(1, self._output_tokens)))

    @property
    def bound_ms(self) -> int:
        """The least time per token that a request here was promised; 0: none."""
        bounds = self._bounds
        while bounds and ((charge := self._charges.get(bounds[0][1])) is None or charge.tpot_ms != bounds[0][0]):
            heapq.heappop(bounds)
        return bounds[0][0] if bounds else 0

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
        record = self.record
        if not self._charges or record is None:
            return math.inf
        free = self.capacity_tokens - self._kv_tokens
        if bound_ms := self.bound_ms:
            per_token_ms = record.cost.decode_per_context_token_ms
            left_ms = bound_ms - self._step_ms(1)
            if left_ms < 0:
                free = -1.0
            elif per_token_ms > 0:
                free = min(free, left_ms / per_token_ms)
        return free

    def admits(self, node: RequestNode, now_ms: float) -> bool:
        """Whether ``node`` may start here without hurting what runs: room, KV memory, the time per token that requests
        with such an objective were promised, and for throughput work its pace beside urgent requests. An empty engine
        admits anything: only it can say what is too large.
        """
        if self.room <= 0 or (node.model and node.model != self.model):
            return False
        if not self._charges:
            return True
        if not self.has_memory_for(node, now_ms):
            return False
        bound_ms, own_bound_ms = self.bound_ms, _tpot_ms(node)
        if own_bound_ms:
            bound_ms = min(bound_ms or own_bound_ms, own_bound_ms)
        if bound_ms:
            tokens = node.prompt_tokens + node.output_tokens
            if self._step_ms(1, tokens, self._sharing.shared_with(node.prefix)) > bound_ms:
                return False
        return not (self._num_urgent and is_throughput(node) and self.paced_until_ms(now_ms) > now_ms)

    def paced_until_ms(self, now_ms: float) -> float:
        """Until when throughput work is held off here for the sake of urgent requests; ``now_ms`` if it is not."""
        if not self._num_urgent:
            return now_ms
        burst_ms = self._urgent_tokens / self._num_urgent * self._step_ms()
        return max(now_ms, self._pacing.opens_ms(burst_ms))

    # Predictions ------------------------------------------------------------------------------------------------------

    def has_memory_for(self, node: RequestNode, now_ms: float) -> bool:
        """Whether the KV memory that is left takes ``node`` in."""
        record = self.record
        assert record is not None
        if not record.num_blocks:
            return True
        need = node.prompt_tokens - self.cached_tokens(node, now_ms) + node.reserved_tokens
        return self._kv_tokens + need <= record.num_blocks * record.block_size

    def cached_tokens(self, node: RequestNode, now_ms: float) -> int:
        """Estimate how many tokens of the prompt of ``node`` need no prefill here."""
        prefix = node.prefix
        if not prefix or not self._affinity:
            return 0
        holds = self._residency.holds
        for digest, num_tokens in reversed(prefix):
            if holds(digest, now_ms):
                return num_tokens
        if node.planned_engine == self.id and len(prefix) > 1:
            return prefix[-2][1]  # what it waited for comes last
        return 0

    def expect(self, prefix: tuple[Boundary, ...], now_ms: float) -> None:
        """The engine was told to prefill a prompt that begins with ``prefix``: it counts as resident."""
        self._residency.assign(prefix, now_ms)

    def completion_ms(self, node: RequestNode, now_ms: float, *, count: int = 1, shared_tokens: int = 0) -> float:
        """Predict how long ``count`` requests like ``node`` take here, plus the delay they are to urgent ones here.

        ``shared_tokens`` of their prompts are the same in all of them: computed once, and read once in each step by an
        engine whose attention can.
        """
        record = self.record
        assert record is not None
        cached = self.cached_tokens(node, now_ms)
        uncached = max(0, node.prompt_tokens - cached)
        shared_running = self._sharing.shared_with(node.prefix) if node.prefix else 0
        prefill_ms = record.cost.prefill_ms(uncached, cached)
        if count > 1:
            others_cached = max(cached, shared_tokens)
            prefill_ms += (count - 1) * record.cost.prefill_ms(
                max(0, node.prompt_tokens - others_cached), others_cached
            )
            shared_running += (count - 1) * max(shared_running, shared_tokens)
        return self._completion_ms(
            count, node.prompt_tokens + node.output_tokens // 2, node.output_tokens, prefill_ms, shared_running, now_ms
        )

    def score_ms(self, prompt_tokens: int, output_tokens: int, now_ms: float) -> float:
        """Return ``completion_ms`` of a request of this size that shares nothing: what engines are ranked by."""
        record = self.record
        assert record is not None
        prefill_ms = record.cost.prefill_ms(prompt_tokens)
        return self._completion_ms(1, prompt_tokens + output_tokens // 2, output_tokens, prefill_ms, 0, now_ms)

    @property
    def prefill_until_ms(self) -> float:
        """When the prompts that were given to it should have been prefilled."""
        return self._prefill_until_ms

    def _completion_ms(
        self, count: int, context: int, output_tokens: int, prefill_ms: float, shared: int, now_ms: float
    ) -> float:
        record = self.record
        assert record is not None
        slots, before = record.max_num_seqs, len(self._charges)
        after = before + count
        step_ms = self._step_ms(count, count * context, shared)
        total_ms = prefill_ms + step_ms * output_tokens
        if self._prefill_until_ms > now_ms:
            total_ms += self._prefill_until_ms - now_ms
        if after > slots:
            mean_output = (self._output_tokens + count * output_tokens) / after
            total_ms += (after - slots) / slots * mean_output * step_ms
        if self._num_urgent:
            longer_ms = max(0.0, step_ms - self._step_ms())
            total_ms += self._num_urgent * prefill_ms
            total_ms += longer_ms * min(self._num_urgent * output_tokens, self._urgent_tokens)
        return total_ms

    def _step_ms(self, more: int = 0, more_tokens: int = 0, more_shared: int = 0) -> float:
        """Predict a step with so many more requests, of so many context tokens in all, running here."""
        record = self.record
        assert record is not None
        running = len(self._charges) + more
        tokens, shared = self._context_tokens + more_tokens, self._sharing.tokens + more_shared
        slots = record.max_num_seqs
        if running > slots:
            return record.cost.decode_step_ms(slots, tokens * slots / running, shared * slots / running)
        return record.cost.decode_step_ms(running, tokens, shared)

    # Books ------------------------------------------------------------------------------------------------------------

    def charge(self, node: RequestNode, now_ms: float) -> None:
        """Count ``node`` as dispatched here."""
        if node.id in self._charges:
            return
        cached = self.cached_tokens(node, now_ms)
        uncached = max(0, node.prompt_tokens - cached)
        charge = Charge(
            node.prompt_tokens + node.output_tokens // 2,
            node.output_tokens,
            uncached + node.reserved_tokens,
            is_urgent(node),
            _tpot_ms(node),
            node.prefix if self._affinity else (),
        )
        if self.record is not None:
            prefill_ms = self.record.cost.prefill_ms(uncached, cached)
            self._prefill_until_ms = max(now_ms, self._prefill_until_ms) + prefill_ms
            if self._num_urgent and is_throughput(node):
                longer_ms = max(0.0, self._step_ms(1, charge.context_tokens) - self._step_ms())
                mean_urgent = self._urgent_tokens / self._num_urgent
                self._pacing.add(prefill_ms + longer_ms * min(charge.output_tokens, mean_urgent), now_ms)
        self._charges[node.id] = charge
        self._count(charge, 1)
        self._sharing.add(charge.prefix)
        if charge.tpot_ms:
            heapq.heappush(self._bounds, (charge.tpot_ms, node.id))
        if charge.prefix:
            self._residency.assign(charge.prefix, now_ms)
        self._changed(self)

    def restate(self, node: RequestNode) -> None:
        """The objective of a request that is here has changed."""
        charge = self._charges.get(node.id)
        if charge is None:
            return
        self._count(charge, -1)
        charge.urgent, charge.tpot_ms = is_urgent(node), _tpot_ms(node)
        self._count(charge, 1)
        if charge.tpot_ms:
            heapq.heappush(self._bounds, (charge.tpot_ms, node.id))
        self._changed(self)

    def discharge(self, request_id: str) -> bool:
        """Take a request off: it is finished, or was given back. False if it was not counted here."""
        charge = self._charges.pop(request_id, None)
        if charge is None:
            return False
        self._count(charge, -1)
        self._sharing.remove(charge.prefix)
        if not self._charges:
            self._prefill_until_ms = 0.0
        if not self._num_urgent:
            self._pacing.clear()
        self._changed(self)
        return True

    def _count(self, charge: Charge, sign: int) -> None:
        self._context_tokens += sign * charge.context_tokens
        self._output_tokens += sign * charge.output_tokens
        self._kv_tokens += sign * charge.kv_tokens
        if charge.urgent:
            self._num_urgent += sign
            self._urgent_tokens += sign * charge.output_tokens


def is_urgent(node: RequestNode) -> bool:
    """Whether somebody waits for ``node`` in person."""
    return node.objective is not None and node.objective.kind is not ObjectiveKind.THROUGHPUT


def is_throughput(node: RequestNode) -> bool:
    """Whether only the work done per second matters for ``node``."""
    return node.objective is not None and node.objective.kind is ObjectiveKind.THROUGHPUT


def _tpot_ms(node: RequestNode) -> int:
    objective = node.objective
    return objective.value_ms if objective is not None and objective.kind is ObjectiveKind.TPOT else 0
