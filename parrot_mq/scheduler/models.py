"""Requests for models that no engine has ever registered."""

from __future__ import annotations

import dataclasses

from parrot_mq.scheduler.nodes import RequestNode

MAX_UNKNOWN = 1_000
"""Unknown models that are remembered."""


@dataclasses.dataclass(slots=True)
class _Unserved:
    since_s: float
    requests: dict[str, RequestNode] = dataclasses.field(default_factory=dict)


class Models:
    """Which models engines have registered, and what asks for others.

    A model is unknown once it was asked for during ``grace_s`` without an engine registering it; from then on requests
    for it are doomed at once, until an engine registers it. A known model whose engines are all gone is waited for.
    """

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._known: set[str] = {""}
        self._unknown: set[str] = set()
        self._unserved: dict[str, _Unserved] = {}

    @property
    def known(self) -> list[str]:
        """Names of the models that engines have registered."""
        return sorted(self._known - {""})

    def registered(self, model: str) -> None:
        """An engine serves ``model`` (or is loading it)."""
        if model not in self._known:
            self._known.add(model)
            self._unknown.discard(model)
            self._unserved.pop(model, None)

    def asked(self, node: RequestNode, now_s: float) -> bool:
        """Note a new request; True if its model is unknown and the request is doomed at once."""
        if node.model in self._known:
            return False
        if node.model not in self._unserved:
            self._unserved[node.model] = _Unserved(now_s)
        self._unserved[node.model].requests[node.id] = node
        return node.model in self._unknown

    def ended(self, node: RequestNode) -> None:
        """A request is finished."""
        if node.model not in self._known and (unserved := self._unserved.get(node.model)) is not None:
            unserved.requests.pop(node.id, None)
            if not unserved.requests:
                del self._unserved[node.model]

    def doomed(self, now_s: float) -> list[RequestNode]:
        """Return each request whose model is unknown by now. They are returned again until they have ended."""
        found: list[RequestNode] = []
        for model, unserved in self._unserved.items():
            if model in self._unknown or now_s - unserved.since_s >= self._grace_s:
                if len(self._unknown) >= MAX_UNKNOWN:
                    self._unknown.clear()  # names come from applications; whoever asks again waits the grace again
                self._unknown.add(model)
                found += unserved.requests.values()
        return found
