"""An engine as the policy sees it: what it runs, what it will cost to run one more, when that would be done."""

from __future__ import annotations

import dataclasses
import math
from collections import OrderedDict

from parrot_mq.messages import EngineRecord, EngineState, ObjectiveKind
from parrot_mq.scheduler.nodes import RequestNode

ROUND_TRIP_MS = 2.0
"""From a completion until the next request has arrived at the engine: what dispatching ahead has to bridge."""
MIN_STEP_MS = 0.05
RECENT_MS = 30_000.0
"""A prefix that was assigned to an engine counts as resident there for this long, whatever its heartbeat lists."""
MAX_RECENT = 1024


@dataclasses.dataclass(frozen=True, slots=True)
class Charge:
    """What one outstanding request adds to its engine's load."""

    context_tokens: int
    output_tokens: int
    kv_tokens: int
    urgent: bool
    tpot_ms: int


class EngineLoad:
    """One engine: its newest heartbeat, and the requests that were dispatched to it and are not finished.

    Requests are counted from dispatch to the hint that they ended, so that load is exact between heartbeats.
    """

    def __init__(self, engine_id: str, queue_depth_steps: float = 2.0) -> None:
        self.id = engine_id
        self.record: EngineRecord | None = None
        self.suspended = False
        """The store refused a dispatch to it: nothing more until its next heartbeat is read."""
        self._queue_depth_steps = queue_depth_steps
        self._charges: dict[str, Charge] = {}
        self._bounds_ms: dict[str, int] = {}
        self._context_tokens = self._output_tokens = self._kv_tokens = self._num_urgent = 0
        self._resident: frozenset[str] = frozenset()
        self._recent: OrderedDict[str, float] = OrderedDict()
        self._prefill_until_ms = 0.0

    def update(self, record: EngineRecord | None) -> None:
        """Take a new heartbeat; None: it has none any more."""
        self.record = record
        self.suspended = False
        if record is not None:
            self._resident = frozenset(record.resident)

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
    def num_free_slots(self) -> int:
        """How many more requests would run at once."""
        return 0 if self.record is None else max(0, self.record.max_num_seqs - len(self._charges))

    @property
    def num_spare(self) -> int:
        """How many requests it could be given unseen: half of its free slots, while at least half of its KV memory is
        free too and no time per token was promised to anybody.
        """
        record = self.record
        if record is None or self.suspended or self._bounds_ms:
            return 0
        if record.num_blocks and 2 * self._kv_tokens > record.num_blocks * record.block_size:
            return 0
        return (self.num_free_slots + 1) // 2

    @property
    def room(self) -> int:
        """How many more requests it may be given now: free slots, and what should start within about two steps."""
        if self.record is None or self.suspended or self.record.state is not EngineState.READY:
            return 0
        return max(0, self.record.max_num_seqs + self._ahead() - len(self._charges))

    def _ahead(self) -> int:
        # In s steps about s * slots / mean output slots come free; a fast engine needs the round trip bridged.
        assert self.record is not None
        slots = self.record.max_num_seqs
        count = len(self._charges)
        if count < slots:
            return 0
        step_ms = max(MIN_STEP_MS, self.record.cost.decode_step_ms(slots, self._context_tokens))
        steps = max(self._queue_depth_steps, ROUND_TRIP_MS / step_ms)
        return min(slots, math.ceil(steps * slots * count / max(1, self._output_tokens)))

    def admits(self, node: RequestNode, now_ms: float) -> bool:
        """Whether ``node`` may start here without hurting what runs: room, KV memory, and the time per token that
        requests with such an objective were promised. An empty engine admits anything: only it can say what is too
        large.
        """
        if self.room <= 0 or (node.model and node.model != self.model):
            return False
        if not self._charges:
            return True
        if not self.holds(node, now_ms):
            return False
        bound_ms = min(self._bounds_ms.values(), default=0)
        own_bound_ms = _tpot_ms(node)
        if own_bound_ms:
            bound_ms = min(bound_ms or own_bound_ms, own_bound_ms)
        return not bound_ms or self._step_ms(1, node.prompt_tokens + node.output_tokens) <= bound_ms

    def holds(self, node: RequestNode, now_ms: float) -> bool:
        """Whether the KV memory that is left takes ``node`` in."""
        record = self.record
        assert record is not None
        if not record.num_blocks:
            return True
        need = node.prompt_tokens - self.cached_tokens(node, now_ms) + node.reserved_tokens
        return self._kv_tokens + need <= record.num_blocks * record.block_size

    def cached_tokens(self, node: RequestNode, now_ms: float) -> int:
        """Estimate how many tokens of the prompt of ``node`` need no prefill here."""
        for digest, num_tokens in reversed(node.prefix):
            if digest in self._resident or self._recent.get(digest, -RECENT_MS) + RECENT_MS > now_ms:
                return num_tokens
        return 0

    def completion_ms(self, node: RequestNode, now_ms: float, *, count: int = 1) -> float:
        """Predict how long ``count`` requests like ``node`` take here, plus the delay they are to urgent ones here.

        ``count`` > 1 stands for prefix sharers: the shared part is prefilled once.
        """
        record = self.record
        assert record is not None
        uncached = max(0, node.prompt_tokens - self.cached_tokens(node, now_ms))
        own_parts = count - 1
        if own_parts and len(node.prefix) > 1:
            uncached += own_parts * (node.prompt_tokens - node.prefix[0][1])
        elif own_parts:
            uncached += own_parts * node.prompt_tokens
        prefill_ms = record.cost.prefill_ms(uncached)
        step_ms = self._step_ms(count, count * (node.prompt_tokens + node.output_tokens // 2))
        harm_ms = self._num_urgent * (prefill_ms + (step_ms - self._step_ms(0, 0)) * node.output_tokens)
        backlog_ms = max(0.0, self._prefill_until_ms - now_ms)
        return backlog_ms + self._wait_ms(count, step_ms) + prefill_ms + step_ms * node.output_tokens + harm_ms

    def _step_ms(self, more: int, more_tokens: int) -> float:
        assert self.record is not None
        running = min(len(self._charges) + more, self.record.max_num_seqs)
        return self.record.cost.decode_step_ms(running, self._context_tokens + more_tokens)

    def _wait_ms(self, more: int, step_ms: float) -> float:
        assert self.record is not None
        slots, count = self.record.max_num_seqs, len(self._charges)
        if count + more <= slots or not count:
            return 0.0
        return (count + more - slots) / slots * (self._output_tokens / count) * step_ms

    def charge(self, node: RequestNode, now_ms: float) -> None:
        """Count ``node`` as dispatched here."""
        if node.id in self._charges:
            return
        uncached = max(0, node.prompt_tokens - self.cached_tokens(node, now_ms))
        charge = Charge(
            node.prompt_tokens + node.output_tokens // 2,
            node.output_tokens,
            uncached + node.reserved_tokens,
            node.objective is not None and node.objective.kind is not ObjectiveKind.THROUGHPUT,
            _tpot_ms(node),
        )
        self._charges[node.id] = charge
        self._add(charge, 1)
        if charge.tpot_ms:
            self._bounds_ms[node.id] = charge.tpot_ms
        if self.record is not None:
            start_ms = max(now_ms, self._prefill_until_ms)
            self._prefill_until_ms = start_ms + self.record.cost.prefill_ms(uncached)
        for digest, _ in node.prefix:
            self._recent[digest] = now_ms
            self._recent.move_to_end(digest)
        while len(self._recent) > MAX_RECENT:
            self._recent.popitem(last=False)

    def discharge(self, request_id: str) -> None:
        """Take a request off: it is finished, or was given back."""
        charge = self._charges.pop(request_id, None)
        if charge is not None:
            self._add(charge, -1)
            self._bounds_ms.pop(request_id, None)
        if not self._charges:
            self._prefill_until_ms = 0.0

    def _add(self, charge: Charge, sign: int) -> None:
        self._context_tokens += sign * charge.context_tokens
        self._output_tokens += sign * charge.output_tokens
        self._kv_tokens += sign * charge.kv_tokens
        self._num_urgent += sign * charge.urgent


def _tpot_ms(node: RequestNode) -> int:
    objective = node.objective
    return objective.value_ms if objective is not None and objective.kind is ObjectiveKind.TPOT else 0
