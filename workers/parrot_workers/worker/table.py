"""Which attempts this engine has, from their claim until their outcome is written."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from parrot_workers.worker.run import Leases, Run


class RunTable:
    """The runs, by attempt, request and output; their leases are kept in step. Owned by the worker's event loop."""

    def __init__(self, leases: Leases) -> None:
        self._leases = leases
        self._runs: dict[str, Run] = {}
        self._by_request: dict[str, Run] = {}
        self._by_output: dict[str, Run] = {}
        self._changed = asyncio.Event()
        self.num_in_engine = 0

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[Run]:
        return iter(list(self._runs.values()))

    def __contains__(self, attempt: str) -> bool:
        return attempt in self._runs

    def get(self, attempt: str) -> Run | None:
        """Return the run with this id inside the engine."""
        return self._runs.get(attempt)

    def of_request(self, request: str) -> Run | None:
        """Return the run of a request."""
        return self._by_request.get(request)

    def of_output(self, variable: str) -> Run | None:
        """Return the run that makes a variable."""
        return self._by_output.get(variable)

    def add(self, run: Run) -> None:
        """Add a run and, once it is claimed, have its lease renewed."""
        self._runs[run.id] = run
        self._by_request[run.claim.request] = run
        self._by_output[run.spec.output] = run
        self.num_in_engine += 1
        if run.is_claimed:
            self.hold(run)

    def hold(self, run: Run) -> None:
        """Have the lease of a run renewed from now on; nothing is done for one that is not here any more."""
        if self._runs.get(run.id) is run:
            self._leases.hold(run.store.partition.keys.partition, run.pair)

    def leave_engine(self, run: Run) -> None:
        """Note that the run takes none of the engine's slots any more; its outcome is still to be written."""
        if run.in_engine:
            run.in_engine = False
            self.num_in_engine -= 1

    def remove(self, run: Run) -> None:
        """Forget a run and let its lease go."""
        self.leave_engine(run)
        if self._runs.get(run.id) is run:
            del self._runs[run.id]
            self._leases.drop(run.pair)
            if self._by_request.get(run.claim.request) is run:
                del self._by_request[run.claim.request]
            if self._by_output.get(run.spec.output) is run:
                del self._by_output[run.spec.output]
            self._changed.set()

    async def empty(self) -> None:
        """Wait until there is no run."""
        while self._runs:
            self._changed.clear()
            await self._changed.wait()
