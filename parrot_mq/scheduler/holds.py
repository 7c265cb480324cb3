"""Batches that are not complete: their requests wait, so that the graph is whole when the first one is placed."""

from __future__ import annotations

import dataclasses

from parrot_mq.scheduler.nodes import RequestNode


@dataclasses.dataclass(slots=True)
class _Hold:
    until_s: float
    ready: list[RequestNode] = dataclasses.field(default_factory=list)


class Holds:
    """Ready requests of batches whose last chunk has not come yet, each batch for a bounded time."""

    def __init__(self, hold_s: float) -> None:
        self._hold_s = hold_s
        self._held: dict[str, _Hold] = {}

    def __len__(self) -> int:
        """How many batches are held."""
        return len(self._held)

    def begin(self, batch: str, now_s: float) -> None:
        """Hold the requests of ``batch``, if it is not held already."""
        if batch not in self._held:
            self._held[batch] = _Hold(now_s + self._hold_s)

    def keep(self, node: RequestNode) -> bool:
        """Keep a ready request whose batch is held; False if it is not."""
        hold = self._held.get(node.batch)
        if hold is None:
            return False
        hold.ready.append(node)
        return True

    def end(self, batch: str) -> list[RequestNode]:
        """The batch is complete: return what was kept of it."""
        hold = self._held.pop(batch, None)
        return hold.ready if hold is not None else []

    def due(self, now_s: float) -> list[RequestNode]:
        """End the batches that were held long enough; return what was kept of them."""
        late = [batch for batch, hold in self._held.items() if hold.until_s <= now_s]
        return [node for batch in late for node in self.end(batch)]

    def wait_s(self, now_s: float) -> float | None:
        """Return how long until a batch is due, None if none is held."""
        if not self._held:
            return None
        return max(0.0, min(hold.until_s for hold in self._held.values()) - now_s)
