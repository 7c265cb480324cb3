"""The records of what is done ahead of readiness: requests that wait, prefixes they share, inputs they follow."""

from __future__ import annotations

import dataclasses

from parrot_mq.scheduler.nodes import RequestNode, VariableNode
from parrot_mq.scheduler.policy.prefix import START, Step


@dataclasses.dataclass(slots=True, eq=False)
class Prefix:
    """The beginning of one or more prompts.

    ``members`` are all requests known to begin so. ``replicas``, by engine, is where it is needed: on as many engines
    as requests with it are planned for.
    """

    key: str
    step: Step
    members: dict[str, Waiting] = dataclasses.field(default_factory=dict)
    replicas: dict[str, Replica] = dataclasses.field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        """Estimated length."""
        return self.step.num_tokens


@dataclasses.dataclass(slots=True, eq=False)
class Replica:
    """A prefix on one engine, where it is, or is being computed, for the requests in ``waiting`` and ``reading``: those
    whose longest cached beginning it is, before and after their dispatch to the engine.
    """

    prefix: Prefix
    engine: str
    partition: int = 0
    """Of the store that sent the newest hint."""
    waiting: dict[str, Waiting] = dataclasses.field(default_factory=dict)
    reading: dict[str, Waiting] = dataclasses.field(default_factory=dict)
    next_use_ms: float = 0.0
    is_due: bool = False
    """It is yet to be computed: the hint says so."""
    is_kept: bool = False
    """A hint to keep it is out."""
    renew_ms: float = 0.0
    """When a hint is to be given again; 0 never."""
    is_unread: bool = False
    """It was computed ahead, and nobody has read it yet."""


@dataclasses.dataclass(slots=True, eq=False)
class Follow:
    """A variable whose tokens flow into the prefill of those who read it behind one and the same prefix."""

    key: str
    engine: str
    partition: int
    variable_id: str
    members: dict[str, Waiting] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(slots=True, eq=False)
class Waiting:
    """A request that is not dispatched, and how far its prompt is known.

    ``last`` is the last boundary that is known, ``blocker`` the input behind it; ``num_missing`` counts the inputs that
    neither have a value nor a producer that runs. ``prefixes`` are its boundaries worth a hint, shortest first;
    ``anchor`` is the one that is kept, or computed, for it.
    """

    node: RequestNode
    num_missing: int
    last: Step = START
    blocker: VariableNode | None = None
    text_bytes: int = 0
    is_closed: bool = False
    """What comes next cannot be said in a hint."""
    prefixes: list[Prefix] = dataclasses.field(default_factory=list)
    anchor: Replica | None = None
    follow: Follow | None = None
    followed: Step | None = None
    """The boundary behind which the last input that was followed came."""
    followed_on: str = ""
    deferred_on: str = ""
    """The engine that had no room for what would be computed ahead."""

    @property
    def is_reading(self) -> bool:
        """Whether it was dispatched to where its anchor is."""
        return self.anchor is not None and self.node.id in self.anchor.reading
