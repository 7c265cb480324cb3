"""Collecting the outcomes of many variables with one future."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

from parrot_mq.errors import ParrotError
from parrot_mq.messages import Objective
from parrot_mq.store.records import Outcome

if TYPE_CHECKING:
    from parrot_mq.sdk.variable import SemanticVariable


class Collector:
    """Takes outcomes from the hubs until it has enough.

    Enough is all of ``variables``, the first failure included, or with ``count`` that many values (or so many
    failures that they cannot be reached any more); in any case, every submit that they are part of is confirmed.
    ``perf`` is the objective that the reader states.
    """

    __slots__ = (
        "_enough",
        "_error",
        "_is_late",
        "_left",
        "_num_failed",
        "_num_unconfirmed",
        "count",
        "failure",
        "is_over",
        "perf",
        "ready",
        "unknown",
        "variables",
    )

    def __init__(
        self, variables: Sequence[SemanticVariable], perf: Objective | None = None, count: int | None = None
    ) -> None:
        self.variables = variables
        self.perf = perf
        self.count = count
        self.ready: list[SemanticVariable] = []
        """In order of arrival."""
        self.failure: SemanticVariable | None = None
        """The first that failed."""
        self.unknown: list[SemanticVariable] = []
        self._left = {variable.id: variable for variable in variables}
        self._num_failed = 0
        self._num_unconfirmed = 0
        self._error: ParrotError | None = None
        self._enough: asyncio.Future[None] | None = None
        self._is_late = False
        self.is_over = False
        """Whether nobody waits any more."""
        for variable in variables:
            if variable._is_settled and variable._id in self._left:
                self._take(variable)

    @property
    def num_variables(self) -> int:
        """How many different variables there are."""
        return len(self._left) + len(self.ready) + self._num_failed + len(self.unknown)

    def enough(self) -> asyncio.Future[None]:
        """Return what is done once the wait can end; ``check`` then says how it ended."""
        self._enough = asyncio.get_running_loop().create_future()
        self._go_on()
        return self._enough

    def check(self) -> None:
        """Raise what kept enough from coming, ``TimeoutError`` where time did."""
        if self._error is not None:
            raise copy.copy(self._error) from self._error  # it is told to many
        if not self._is_enough():
            raise TimeoutError

    def expire(self) -> None:
        """End the wait: its time is over."""
        self._is_late = True
        self._go_on()

    def left(self) -> list[SemanticVariable]:
        """Return the variables whose outcome is open."""
        return list(self._left.values())

    def take_unknown(self) -> list[SemanticVariable]:
        """Return what Redis did not know, and wait for it again."""
        unknown, self.unknown = self.unknown, []
        self._left.update((variable._id, variable) for variable in unknown)
        return unknown

    def submitting(self) -> None:
        """Note that a submit is to be confirmed first (``submitted``, or ``fail``)."""
        self._num_unconfirmed += 1

    def submitted(self) -> None:
        """Note that a submit is confirmed."""
        self._num_unconfirmed -= 1
        self._go_on()

    def fail(self, error: ParrotError) -> None:
        """End the wait with an error that is no variable's outcome."""
        self._error = self._error or error
        self._go_on()

    def arrived(self, variable_id: str, outcome: Outcome | ParrotError | None) -> None:
        """Take an outcome (called by a hub)."""
        variable = self._left.get(variable_id)
        if variable is None:
            return
        if isinstance(outcome, ParrotError):
            self.fail(outcome)
            return
        if outcome is None:
            del self._left[variable_id]
            self.unknown.append(variable)
        else:
            variable._settle(outcome)
            self._take(variable)
        self._go_on()

    def _take(self, variable: SemanticVariable) -> None:
        del self._left[variable._id]
        if variable._failure is None:
            self.ready.append(variable)
        else:
            self._num_failed += 1
            self.failure = self.failure or variable

    def _go_on(self) -> None:
        if self._enough is not None and not self._enough.done() and self._can_end():
            self._enough.set_result(None)

    def _can_end(self) -> bool:
        return self._error is not None or self._is_late or self._is_enough()

    def _is_enough(self) -> bool:
        if self._num_unconfirmed:
            return False
        if not self._left or self.unknown:
            return True
        if self.count is None:
            return self._num_failed > 0
        return len(self.ready) >= self.count or self.num_variables - self._num_failed < self.count
