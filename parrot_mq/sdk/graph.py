"""The part of the graph that this process made and that is not resolved yet."""

from __future__ import annotations

import asyncio
import copy
from typing import TYPE_CHECKING

from parrot_mq.errors import ParrotError
from parrot_mq.messages import FunctionRecord, RequestForm, RequestSpec

if TYPE_CHECKING:
    from parrot_mq.sdk.collect import Collector
    from parrot_mq.sdk.variable import SemanticVariable


class Request:
    """A request as the SDK keeps it until its output is resolved: enough to submit it again.

    ``inputs`` are the variables in its prompt without repeats, ``output`` is the id of its output. ``premade`` says
    that the output was made before the call: only such a request may be called after what reads its output. ``late``
    says that this has happened: only such a request can close a cycle.
    """

    __slots__ = ("call", "form", "id", "inputs", "late", "output", "premade", "submission", "text")

    def __init__(
        self,
        request_id: str,
        call_id: str,
        form: RequestForm,
        text: str,
        inputs: tuple[SemanticVariable, ...],
        output_id: str,
        submission: Submission,
        *,
        premade: bool,
        late: bool,
    ) -> None:
        self.id = request_id
        self.call = call_id
        self.form = form
        self.text = text
        """It as one line of JSON."""
        self.inputs = inputs
        self.output = output_id
        self.submission = submission
        self.premade = premade
        self.late = late

    @property
    def function(self) -> FunctionRecord:
        """The template."""
        return self.form.function

    @property
    def function_name(self) -> str:
        """The name of its function."""
        return self.form.function.name

    @property
    def model(self) -> str:
        """The name of the model; empty: whatever engine there is."""
        return self.form.model

    @property
    def spec(self) -> RequestSpec:
        """All that is fixed about it."""
        return RequestSpec.from_json(self.text)

    def to_json(self) -> str:
        """Return it as one line of JSON."""
        return self.text


class Submission:
    """Variables and requests that go out together: what was called between two awaits.

    ``after`` are submissions of other sessions that must be there first. Once it is settled, ``error`` says whether
    it was refused; what it carried is let go.
    """

    __slots__ = (
        "_waiting",
        "after",
        "error",
        "is_reported",
        "is_sent",
        "is_watched",
        "requests",
        "settled",
        "variables",
    )

    def __init__(self) -> None:
        self.variables: list[SemanticVariable] = []
        self.requests: list[Request] = []
        self.after: list[Submission] = []
        self.settled = asyncio.Event()
        self.error: ParrotError | None = None
        self.is_reported = False
        self.is_sent = False
        """Whether some of it may be in Redis."""
        self.is_watched = False
        """Whether its session's channel was subscribed to before anything of it was sent."""
        self._waiting: list[tuple[SemanticVariable, Collector]] = []

    def __bool__(self) -> bool:
        return bool(self.variables or self.requests)

    def send(self, is_watched: bool) -> None:
        """Note that it leaves now."""
        self.is_sent, self.is_watched = True, is_watched

    def hold(self, variable: SemanticVariable, collector: Collector) -> None:
        """Have ``collector`` go on with its wait for ``variable`` once this is settled."""
        collector.submitting()
        self._waiting.append((variable, collector))

    def settle(self, error: ParrotError | None = None) -> None:
        """Note the outcome, and wake who waits for it."""
        self.error = error
        self.variables, self.requests, self.after = [], [], []
        self.settled.set()
        waiting, self._waiting = self._waiting, []
        for variable, collector in waiting:
            variable._bound().submitted(variable, self, collector)

    def report(self) -> None:
        """Raise the error if there is one; it then counts as seen by the application."""
        if self.error is not None:
            self.is_reported = True
            raise copy.copy(self.error) from self.error  # many may wait, and each raise extends the traceback
