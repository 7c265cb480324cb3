"""When the tokens of each request came out of an engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from parrot_workers.engine.port import SequenceOutput


@dataclasses.dataclass(slots=True)
class Timing:
    """Of the newest attempt of a request, in virtual seconds: its first token and the newest one, ``num_tokens``."""

    first_s: float
    last_s: float
    num_tokens: int

    @property
    def tpot_s(self) -> float | None:
        """Mean time between two tokens; None if there was only one."""
        return (self.last_s - self.first_s) / (self.num_tokens - 1) if self.num_tokens > 1 else None


class Timings:
    """One entry for each request that an engine has begun, by the request's id.

    A request that shares another one's sequence (single-flight) has none.
    """

    def __init__(self) -> None:
        self._timings: dict[str, Timing] = {}
        self._attempts: dict[str, str] = {}

    def note(self, now_s: float, outputs: Iterable[SequenceOutput]) -> None:
        """Take what a step brought."""
        for output in outputs:
            if not output.token_ids:
                continue
            request, _, attempt = output.id.partition("/")
            timing = self._timings.get(request)
            if timing is None or self._attempts[request] != attempt:
                self._attempts[request] = attempt
                self._timings[request] = Timing(now_s, now_s, len(output.token_ids))
            else:
                timing.last_s = now_s
                timing.num_tokens += len(output.token_ids)

    def of(self, request_id: str) -> Timing | None:
        """Return the timing of a request; None if nothing has come out of an engine for it."""
        return self._timings.get(request_id)
