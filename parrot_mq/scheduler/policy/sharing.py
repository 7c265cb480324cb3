"""How much of what runs on an engine is read for several requests at once, because their prompts begin alike."""

from __future__ import annotations

from collections.abc import Sequence

from parrot_mq.scheduler.policy.prefix import Boundary


class Sharing:
    """The prefixes of what runs on one engine. Digests are chained, so equal ones stand for equal beginnings.

    ``tokens``: context tokens that are read for another request as well (``CostModel.decode_step_ms``): for ``c``
    requests with the same ``n`` tokens before them, ``(c - 1) * n``.
    """

    __slots__ = ("_parts", "tokens")

    def __init__(self) -> None:
        self._parts: dict[str, list[int]] = {}
        """Per digest: how many requests begin so, and the tokens since the boundary before."""
        self.tokens = 0

    def add(self, prefix: Sequence[Boundary]) -> None:
        """Count a request with ``prefix``."""
        parts, before = self._parts, 0
        for digest, num_tokens in prefix:
            part = parts.get(digest)
            if part is None:
                parts[digest] = [1, num_tokens - before]
            else:
                part[0] += 1
                self.tokens += part[1]
            before = num_tokens

    def remove(self, prefix: Sequence[Boundary]) -> None:
        """Count a request with ``prefix`` no more."""
        parts = self._parts
        for digest, _ in prefix:
            part = parts[digest]
            if part[0] == 1:
                del parts[digest]
            else:
                part[0] -= 1
                self.tokens -= part[1]

    def shared_with(self, prefix: Sequence[Boundary]) -> int:
        """Return how many tokens of ``prefix`` something that runs begins with as well."""
        parts, shared = self._parts, 0
        for digest, num_tokens in prefix:
            if digest not in parts:
                break
            shared = num_tokens
        return shared
