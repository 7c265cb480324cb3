"""The records of what is done ahead of readiness: requests that wait, prefixes they share, inputs they follow."""

from __future__ import annotations

import dataclasses
import enum

from parrot_mq.messages import PrefixHint
from parrot_mq.scheduler.nodes import RequestNode, VariableNode
from parrot_mq.scheduler.policy import Retention
from parrot_mq.scheduler.policy.prefix import START, Step


class OrderKind(enum.StrEnum):
    """What an engine is told to do with a prefix."""

    PREFILL = "prefill"
    """Compute it, and then what it follows; keep it if the hint says so."""
    RETAIN = "retain"
    RELEASE = "release"
    """Keep it no longer, and stop computing it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Order:
    """A message to an engine, sent by a partition of the store. ``hint`` is None for RELEASE."""

    kind: OrderKind
    engine: str
    partition: int
    key: str
    hint: PrefixHint | None = None


@dataclasses.dataclass(slots=True, eq=False)
class Prefix:
    """The beginning of one or more prompts. ``engine`` is where it is, or is being computed, while anybody needs it.

    ``members`` are all requests known to begin so; ``num_waiting`` and ``num_reading`` count those that have their
    longest cached beginning here, before and after their dispatch.
    """

    key: str
    step: Step
    members: dict[str, Waiting] = dataclasses.field(default_factory=dict)
    engine: str = ""
    partition: int = 0
    """Of the store that sent the newest hint."""
    num_waiting: int = 0
    num_reading: int = 0
    next_use_ms: float = 0.0
    is_due: bool = False
    """It is yet to be computed: the hint says so."""
    is_kept: bool = False
    """A hint to keep it is out."""
    renew_ms: float = 0.0
    """When that hint is to be given again."""
    is_unread: bool = False
    """It was computed ahead, and nobody has read it yet."""

    @property
    def num_tokens(self) -> int:
        """Estimated length."""
        return self.step.num_tokens


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
    anchor: Prefix | None = None
    is_reading: bool = False
    follow: Follow | None = None
    followed: Step | None = None
    """The boundary behind which the last input that was followed came."""
    followed_on: str = ""
    deferred_on: str = ""
    """The engine that had no room for what would be computed ahead."""


@dataclasses.dataclass(slots=True, eq=False)
class Shelf:
    """What hints have put on one engine."""

    retention: Retention = dataclasses.field(default_factory=Retention)
    prefixes: dict[str, Prefix] = dataclasses.field(default_factory=dict)
    follows: dict[str, Follow] = dataclasses.field(default_factory=dict)
    ahead: dict[str, int] = dataclasses.field(default_factory=dict)
    """Tokens computed ahead and not read yet, by hint."""
    num_ahead_tokens: int = 0
    num_planned: int = 0
    """Requests that wait and are planned for it."""
    deferred: dict[str, RequestNode] = dataclasses.field(default_factory=dict)
    """Those for which there was no room."""

    def check(self) -> None:
        """Raise AssertionError if the books do not agree with each other."""
        assert self.num_ahead_tokens == sum(self.ahead.values())
        assert self.ahead.keys() <= self.prefixes.keys() | self.follows.keys()
        assert self.retention.num_tokens <= self.retention.budget_tokens
        for key, prefix in self.prefixes.items():
            assert prefix.num_waiting + prefix.num_reading, f"nobody needs {key}"

    def charge(self, key: str, num_tokens: int) -> None:
        """Count tokens as computed ahead."""
        self.discharge(key)
        self.ahead[key] = num_tokens
        self.num_ahead_tokens += num_tokens

    def discharge(self, key: str) -> bool:
        """Take them off; False if there were none."""
        num_tokens = self.ahead.pop(key, None)
        self.num_ahead_tokens -= num_tokens or 0
        return num_tokens is not None
