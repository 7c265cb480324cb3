"""The nodes of the live graph: requests, the variables between them, and the task groups they form."""

from __future__ import annotations

import dataclasses
from typing import Any

from parrot_mq.messages import Objective, ObjectiveKind, RequestState, SamplingParams

DEFAULT_MAX_TOKENS = SamplingParams().max_tokens


@dataclasses.dataclass(slots=True, eq=False)
class TaskGroup:
    """Parallel requests at one stage that feed one consumer: what counts is when the last of them is done.

    ``id`` is the consumer's id, followed by ``~n`` for the n-th stage before the group's own. ``size``: its members
    that are not finished. ``engine`` is where most of those went that were placed last; later ones follow them while
    there is room.
    """

    id: str
    stage: int = 0
    size: int = 0
    engine: str = ""
    _earlier: TaskGroup | None = None

    def earlier(self) -> TaskGroup:
        """Return the group of the serial predecessors of this group's members, always the same object."""
        if self._earlier is None:
            root = self.id.partition("~")[0]
            self._earlier = TaskGroup(f"{root}~{self.stage + 1}", self.stage + 1)
        return self._earlier


@dataclasses.dataclass(slots=True, eq=False)
class VariableNode:
    """A variable that an unfinished request produces or reads; freed when there is none any more."""

    id: str
    producer: RequestNode | None = None
    consumers: dict[str, RequestNode] = dataclasses.field(default_factory=dict)
    resolved: bool = False
    flows: bool = False
    """It has its value, or its producer was dispatched."""
    digest: str = ""
    size_bytes: int = 0
    objective: Objective | None = None


@dataclasses.dataclass(slots=True, eq=False)
class RequestNode:
    """An unfinished request. The graph owns it; the policy reads it and sets what it decides (``engine``, ``state``).

    ``rev`` is the newest revision of its hash that was seen: older news is ignored. ``depth`` is its stage in the
    graph, 0 where no input had a producer when it was submitted. Token counts are estimates (see ``lengths``):
    ``output_tokens`` is the mean, for durations; nine in ten outputs do not exceed ``high_output_tokens``.
    ``prefix`` are the digests of its prompt's variable boundaries with the tokens up to each, shortest first.
    ``transformed``: its output's value may differ from the text that is generated.
    """

    id: str
    partition: int
    tenant: str
    function: str
    prompt_end: int
    model: str
    bindings: dict[str, dict[str, str]]
    raw_inputs: tuple[str, ...]
    output: VariableNode
    inputs: tuple[VariableNode, ...]
    batch: str
    rev: int
    state: RequestState
    depth: int
    submitted_ms: int
    priority: int = 0
    max_tokens: int = DEFAULT_MAX_TOKENS
    exact_length: bool = False
    transformed: bool = False
    share_prefixes: bool = False
    objective: Objective | None = None
    objective_of: str = ""
    """The variable whose reader stated it, or what it was deduced from."""
    group: TaskGroup | None = None
    output_tokens: int = 0
    high_output_tokens: int = 0
    prompt_tokens: int = 0
    prefix: tuple[tuple[str, int], ...] = ()
    engine: str = ""
    fence: str = ""
    told: ObjectiveKind = ObjectiveKind.LATENCY
    """What its engine takes it to be for."""
    planned_engine: str = ""
    """While it waits: the engine that its prompt's beginning is prepared on; its prefix counts as resident there."""
    planned_tokens: int = 0
    """How much of it: tokens of the prompt that are computed, or kept, there."""
    kept_engine: str = ""
    """While no engine admits it: the engine that is kept free for it."""
    before_ms: float = 0.0
    """Expected time along the graph until it can start, from the submit of what it depends on."""
    remaining_ms: float = 0.0
    """Expected time along the graph from its end until what somebody waits for is done; 0 if that is its own output."""
    slack_ms: float = 0.0
    """How much later than expected it may start without delaying what somebody waits for; 0 on the critical path."""
    call_digest: bytes = b""
    """What is fixed about its output at the submit (see ``policy.flights``); empty if it is not deterministic."""
    flight: str | None = None
    """What equal requests have in common, once it is ready; None if it has no equals, empty if it shall have none."""
    key_ms: float = 0.0
    """Where it stands in the ready queue: lower first."""
    ticket: int = 0
    """Which of its entries in the ready queue is valid."""

    @property
    def reserved_tokens(self) -> int:
        """Output tokens that memory is set aside for."""
        mean, high = self.output_tokens, self.high_output_tokens
        return high if high > mean else mean


@dataclasses.dataclass(frozen=True, slots=True)
class Arrival:
    """What is common to the requests of one submit."""

    tenant: str
    batch: str
    at_ms: int
    """When it was submitted, epoch milliseconds."""


def new_request(
    spec: dict[str, Any],
    arrival: Arrival,
    partition: int,
    rev: int,
    state: RequestState,
    output: VariableNode,
    inputs: tuple[VariableNode, ...],
    depth: int,
) -> RequestNode:
    """Make a node from a spec's JSON object, of which only what the scheduler needs is read."""
    sampling = spec.get("sampling", {})
    return RequestNode(
        id=spec["id"],
        partition=partition,
        tenant=arrival.tenant,
        function=spec["function"],
        prompt_end=spec["prompt_end"],
        model=spec.get("model", ""),
        bindings=spec["bindings"],
        raw_inputs=tuple(spec.get("raw_inputs", ())),
        output=output,
        inputs=inputs,
        batch=arrival.batch,
        rev=rev,
        state=state,
        depth=depth,
        submitted_ms=arrival.at_ms,
        priority=spec.get("priority", 0),
        max_tokens=sampling.get("max_tokens", DEFAULT_MAX_TOKENS),
        exact_length=sampling.get("ignore_eos", False),
        transformed="transform" in spec,
        share_prefixes=spec.get("share_prefixes") is True,
    )
