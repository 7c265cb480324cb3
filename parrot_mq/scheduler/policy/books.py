"""What was dispatched to an engine and is not finished, and what that comes to."""

from __future__ import annotations

import dataclasses
import heapq

from parrot_mq.messages import ObjectiveKind
from parrot_mq.scheduler.nodes import RequestNode
from parrot_mq.scheduler.policy.prefix import Boundary
from parrot_mq.scheduler.policy.sharing import Sharing


@dataclasses.dataclass(slots=True)
class Charge:
    """What one outstanding request adds to its engine's load."""

    context_tokens: int
    output_tokens: int
    kv_tokens: int
    urgent: bool
    patient: bool
    tpot_ms: int
    prefix: tuple[Boundary, ...]


class Books:
    """The outstanding requests of one engine, by id, oldest dispatch first, with sums that are kept as they change."""

    __slots__ = (
        "_bounds", "bound_ms", "charges", "context_tokens", "kv_tokens", "num_patient", "num_urgent", "output_tokens",
        "sharing", "urgent_context", "urgent_tokens",
    )  # fmt: skip

    def __init__(self) -> None:
        self.charges: dict[str, Charge] = {}
        self.context_tokens = self.output_tokens = self.kv_tokens = 0
        self.num_urgent = self.urgent_context = self.urgent_tokens = 0
        """How many requests somebody waits for in person, their tokens in context, and their output tokens."""
        self.num_patient = 0
        """How many were said to be throughput work."""
        self.sharing = Sharing()
        self.bound_ms = 0
        """The least time per token that a request here was promised; 0: none."""
        self._bounds: list[tuple[int, str]] = []

    def add(self, request_id: str, charge: Charge) -> None:
        """Count a request that is not here."""
        self.charges[request_id] = charge
        self._count(charge, 1)
        self.sharing.add(charge.prefix)
        if charge.tpot_ms:
            self._promise(request_id, charge.tpot_ms)

    def remove(self, request_id: str) -> bool:
        """Count a request no more; False if it is not here."""
        charge = self.charges.pop(request_id, None)
        if charge is None:
            return False
        self._count(charge, -1)
        self.sharing.remove(charge.prefix)
        if charge.tpot_ms and charge.tpot_ms == self.bound_ms:
            self._release()
        return True

    def restate(self, request_id: str, *, urgent: bool, tpot_ms: int) -> None:
        """The objective of a request was stated, or has changed."""
        charge = self.charges[request_id]
        self._count(charge, -1)
        charge.urgent, charge.patient, charge.tpot_ms = urgent, not urgent, tpot_ms
        self._count(charge, 1)
        if tpot_ms:
            self._promise(request_id, tpot_ms)
        self._release()

    def _promise(self, request_id: str, tpot_ms: int) -> None:
        heapq.heappush(self._bounds, (tpot_ms, request_id))
        if not 0 < self.bound_ms < tpot_ms:
            self.bound_ms = tpot_ms
        # What was promised to those that are gone goes when it comes first; where most are gone, all goes at once.
        if len(self._bounds) > 2 * len(self.charges) + 64:
            self._bounds = sorted({bound for bound in self._bounds if self._holds(*bound)})

    def _holds(self, tpot_ms: int, request_id: str) -> bool:
        charge = self.charges.get(request_id)
        return charge is not None and charge.tpot_ms == tpot_ms

    def _release(self) -> None:
        """Find the least promise that is to be kept: of those at the front, some were to requests that are gone."""
        bounds = self._bounds
        while bounds and not self._holds(*bounds[0]):
            heapq.heappop(bounds)
        self.bound_ms = bounds[0][0] if bounds else 0

    def _count(self, charge: Charge, sign: int) -> None:
        self.context_tokens += sign * charge.context_tokens
        self.output_tokens += sign * charge.output_tokens
        self.kv_tokens += sign * charge.kv_tokens
        self.num_patient += sign * charge.patient
        if charge.urgent:
            self.num_urgent += sign
            self.urgent_context += sign * charge.context_tokens
            self.urgent_tokens += sign * charge.output_tokens


def is_urgent(node: RequestNode) -> bool:
    """Whether somebody waits for ``node`` in person: it has an objective, and that is not THROUGHPUT."""
    objective = node.objective
    return objective is not None and objective.kind is not ObjectiveKind.THROUGHPUT


def is_patient(node: RequestNode) -> bool:
    """Whether somebody said that ``node`` is throughput work."""
    return node.objective is not None and node.objective.kind is ObjectiveKind.THROUGHPUT


def is_throughput(node: RequestNode) -> bool:
    """Whether only the work done per second matters for ``node``, as far as anybody has said: a request that nobody
    has asked for yet counts as such. Who asks is heard within a moment of the submit, and changes it.
    """
    return not is_urgent(node)


def tpot_ms(node: RequestNode) -> int:
    """Return the time per output token that ``node`` was promised; 0: none."""
    objective = node.objective
    return objective.value_ms if objective is not None and objective.kind is ObjectiveKind.TPOT else 0
