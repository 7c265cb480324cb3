"""Collecting the outcomes of many variables with one future."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

from parrot_mq.errors import ParrotError
from parrot_mq.store.records import VariableRecord

if TYPE_CHECKING:
    from parrot_mq.sdk.variable import SemanticVariable


class Collector:
    """Takes outcomes from the hubs until it has enough.

    Enough is all of ``variables``, the first failure included, or with ``count`` that many values (or so many
    failures that they cannot be reached any more).
    """

    def __init__(self, variables: Sequence[SemanticVariable], count: int | None = None) -> None:
        self.variables = variables
        self.count = count
        self.ready: list[SemanticVariable] = []
        """In order of arrival."""
        self.failed: list[SemanticVariable] = []
        self.unknown: list[SemanticVariable] = []
        self._left = {variable.id: variable for variable in variables}
        self._error: ParrotError | None = None
        self._enough: asyncio.Future[None] | None = None

    @property
    def num_variables(self) -> int:
        """How many different variables there are."""
        return len(self._left) + len(self.ready) + len(self.failed) + len(self.unknown)

    def start(self) -> list[SemanticVariable]:
        """Take what is known already; return what must be waited for, nothing if there is enough."""
        self._enough = None
        for variable in [variable for variable in self._left.values() if variable._is_settled]:
            self._take(variable)
        if self._is_enough():
            return []
        self._enough = asyncio.get_running_loop().create_future()
        return list(self._left.values())

    async def wait(self) -> None:
        """Wait until there is enough; raises what kept a hub from going on."""
        assert self._enough is not None
        await self._enough
        if self._error is not None:
            raise copy.copy(self._error) from self._error  # it is told to many

    def left(self) -> list[str]:
        """Return the ids whose outcome is open."""
        return list(self._left)

    def take_unknown(self) -> list[SemanticVariable]:
        """Return what Redis did not know, and wait for it again."""
        unknown, self.unknown = self.unknown, []
        self._left.update((variable._id, variable) for variable in unknown)
        return unknown

    def arrived(self, variable_id: str, outcome: VariableRecord | ParrotError | None) -> None:
        """Take an outcome (called by a hub)."""
        variable = self._left.get(variable_id)
        if variable is None:
            return
        if isinstance(outcome, ParrotError):
            self._error = outcome
        elif outcome is None:
            del self._left[variable_id]
            self.unknown.append(variable)
        else:
            variable._settle(outcome)
            self._take(variable)
        if self._enough is not None and not self._enough.done() and self._is_enough():
            self._enough.set_result(None)

    def _take(self, variable: SemanticVariable) -> None:
        del self._left[variable._id]
        (self.failed if variable._failure is not None else self.ready).append(variable)

    def _is_enough(self) -> bool:
        if not self._left or self._error is not None or self.unknown:
            return True
        if self.count is None:
            return bool(self.failed)
        return len(self.ready) >= self.count or self.num_variables - len(self.failed) < self.count
