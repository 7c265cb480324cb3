"""What hints have put on one engine."""

from __future__ import annotations

import dataclasses

from parrot_mq.scheduler.nodes import RequestNode
from parrot_mq.scheduler.policy import Retention
from parrot_mq.scheduler.prefixes import Follow, Replica


@dataclasses.dataclass(slots=True, eq=False)
class Shelf:
    """The books of one engine. ``replicas`` are by the keys of their prefixes."""

    retention: Retention = dataclasses.field(default_factory=Retention)
    replicas: dict[str, Replica] = dataclasses.field(default_factory=dict)
    follows: dict[str, Follow] = dataclasses.field(default_factory=dict)
    ahead: dict[str, int] = dataclasses.field(default_factory=dict)
    """Tokens computed ahead and not read yet, by hint."""
    num_ahead_tokens: int = 0
    deferred: dict[str, RequestNode] = dataclasses.field(default_factory=dict)
    """Those for which there was no room."""

    def check(self) -> None:
        """Raise AssertionError if the books do not agree with each other."""
        assert self.num_ahead_tokens == sum(self.ahead.values())
        assert self.ahead.keys() <= self.replicas.keys() | self.follows.keys()
        assert self.retention.num_tokens <= self.retention.budget_tokens
        for key, replica in self.replicas.items():
            assert key == replica.prefix.key
            assert replica.waiting or replica.reading, f"nobody needs {key}"

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
