"""One call of a semantic function: from arguments to requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from parrot_mq.errors import AlreadyProduced, AlreadySet, BadType, ParrotError
from parrot_mq.keys import partition_of
from parrot_mq.messages.form import bound_text, bound_variable
from parrot_mq.sdk.formatters import Formatter
from parrot_mq.sdk.graph import Request
from parrot_mq.sdk.plan import OutputPlan, Plan
from parrot_mq.sdk.signature import Role
from parrot_mq.sdk.variable import SemanticVariable, VariableList

if TYPE_CHECKING:
    from parrot_mq.sdk.session import Session


class Call:
    """A call that was made: its id, its requests, its outputs' ids."""

    __slots__ = ("_session", "function_name", "id", "outputs", "requests")

    def __init__(self, session: Session, call_id: str, function_name: str) -> None:
        self.id = call_id
        self.function_name = function_name
        self.requests: tuple[str, ...] = ()
        self.outputs: tuple[str, ...] = ()
        self._session = session

    async def cancel(self, reason: str = "cancelled by the application") -> int:
        """Cancel the requests of the call that are not finished, and all downstream; returns how many they were."""
        return await self._session.cancel_requests(self.requests, reason)


class CallBuilder:
    """Builds the requests of one call in ``session``; nothing is noted anywhere before ``submit``."""

    __slots__ = (
        "_bindings",
        "_call",
        "_formatter",
        "_fresh",
        "_model",
        "_plan",
        "_premade",
        "_priority",
        "_producers",
        "_session",
        "_token",
        "_variables",
    )

    def __init__(self, plan: Plan, session: Session, formatter: Formatter, model: str, priority: int) -> None:
        self._plan = plan
        self._session = session
        self._formatter = formatter
        self._model = model
        self._priority = priority
        self._token = session.token()
        self._call = Call(session, session.object_id("c", self._token), plan.record.name)
        self._bindings: dict[str, str] = {}
        self._variables: dict[str, SemanticVariable] = {}
        self._premade: dict[str, SemanticVariable] = {}
        self._fresh: list[SemanticVariable] = []
        self._producers: list[tuple[SemanticVariable, Request]] = []

    def bind(self, arguments: dict[str, Any]) -> None:
        """Check the arguments and note what stands in each placeholder."""
        for parameter in self._plan.parameters:
            value = arguments[parameter.name]
            if parameter.role is Role.OUTPUT:
                if value is not None:
                    self._premade[parameter.name] = self._checked_output(parameter.name, value)
            elif parameter.role is Role.INPUT:
                self._note(parameter.name, self._input(parameter.name, value))
            else:
                self._render(parameter.name, value)

    def submit(self) -> tuple[SemanticVariable | VariableList, ...]:
        """Make the requests, hand them to the session, and return the outputs in the order of the template."""
        results = tuple([self._output(plan) for plan in self._plan.outputs])
        requests = [request for _, request in self._producers]
        self._call.requests = tuple([request.id for request in requests])
        self._call.outputs = tuple([request.output for request in requests])
        for variable, request in self._producers:
            variable._request = request
            variable._call = self._call
            for used in request.inputs:
                if used._consumers is None:
                    used._consumers = [request.id]
                else:
                    used._consumers.append(request.id)
        self._session.take(self._fresh, requests)
        return results

    def _note(self, name: str, variable: SemanticVariable) -> None:
        self._variables[name] = variable
        self._bindings[name] = bound_variable(variable._id)

    def _input(self, name: str, value: object) -> SemanticVariable:
        if isinstance(value, str):
            try:
                return self._new(name, value)
            except ParrotError as error:
                error.add_note(f"argument {name!r} of {self._plan.record.name}")
                raise
        if not isinstance(value, SemanticVariable):
            hint = ""
            if isinstance(value, VariableList):
                hint = "; pass one of its variables, or join their values"
            raise BadType(
                f"{self._plan.record.name}: input {name!r} must be a SemanticVariable or str, "
                f"not {type(value).__name__}{hint}",
                name,
            )
        if value._link is None:
            self._session.adopt(value)
        elif value._link is not self._session.link:
            raise BadType(f"{self._plan.record.name}: input {name!r} belongs to another client", name)
        return value

    def _render(self, name: str, value: object) -> None:
        function = self._plan.record.name
        if isinstance(value, SemanticVariable | VariableList):
            raise BadType(
                f"{function}: parameter {name!r} is rendered as a Python object, but a {type(value).__name__} was "
                f"given; annotate it with Input, or write {{{{input:{name}}}}}",
                name,
            )
        text = self._formatter(value)
        if not isinstance(text, str):
            raise BadType(f"{function}: the formatter returned {type(text).__name__} for {name!r}, not str", name)
        encoded = self._session.encode(text, self._token)  # a lone surrogate or too large a text ends here
        if encoded.fence:  # large: sent once as a variable instead of with every request
            self._note(name, self._new(name, text))
        else:
            self._bindings[name] = bound_text(text)

    def _checked_output(self, name: str, value: object) -> SemanticVariable:
        function = self._plan.record.name
        if not isinstance(value, SemanticVariable):
            raise BadType(f"{function}: output {name!r} must be a SemanticVariable, not {type(value).__name__}", name)
        if value._link is None:
            self._session.adopt(value)
        if value._link is not self._session.link or partition_of(value._id) != self._session.partition_number:
            raise BadType(f"{function}: output {name!r} must be a variable of the session that calls", name)
        if value._text is not None:
            raise AlreadySet(f"{function}: output {name!r} ({value._id}) has a value already", value._id)
        if value._request is not None and value._request.submission.error is None:
            raise AlreadyProduced(
                f"{function}: output {name!r} ({value._id}) is produced by {value._request.spec.function_name} already",
                value._id,
            )
        return value

    def _new(self, name: str, text: str | None) -> SemanticVariable:
        suffix = f".{len(self._fresh)}" if self._fresh else ""
        variable = self._session.fresh(name, text, self._token + suffix)
        self._fresh.append(variable)
        return variable

    def _output(self, plan: OutputPlan) -> SemanticVariable | VariableList:
        premade = self._premade.get(plan.name)
        if plan.spec.n == 1:
            variable = premade if premade is not None else self._new(plan.name, None)
            self._request(plan, 0, variable)
            self._note(plan.name, variable)
            return variable
        if premade is not None:
            raise BadType(
                f"{self._plan.record.name}: output {plan.name!r} has n={plan.spec.n}; it cannot be given", plan.name
            )
        siblings = [self._new(plan.name, None) for _ in range(plan.spec.n)]
        for index, sibling in enumerate(siblings):
            self._request(plan, index, sibling)
        return VariableList(siblings)

    def _request(self, plan: OutputPlan, index: int, output: SemanticVariable) -> None:
        suffix = f".{len(self._producers)}" if self._producers else ""
        variables = self._variables
        used = {variables[name]._id: variables[name] for name in plan.names if name in variables}
        request_id = self._session.object_id("r", self._token + suffix)
        sibling = index if plan.spec.sampling.seed is not None else 0
        share_prefixes = self._session.share_prefixes
        form = plan.form(self._plan.record, self._model, self._priority, sibling, share_prefixes=share_prefixes)
        raw_inputs = [variables[name]._id for name in plan.earlier]
        text = form.fill(request_id, self._call.id, self._bindings, output._id, raw_inputs)
        premade = plan.name in self._premade
        late = premade and (output._id in used or bool(output._consumers))
        inputs, submission = tuple(used.values()), self._session.open_submission
        request = Request(
            request_id, self._call.id, form, text, inputs, output._id, submission, premade=premade, late=late
        )
        self._producers.append((output, request))
