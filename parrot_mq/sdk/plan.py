"""What a semantic function compiles to: its template record, and for each output the request that generates it."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable

from parrot_mq.errors import TemplateError
from parrot_mq.messages import FunctionRecord, RequestForm, SegmentKind
from parrot_mq.sdk.markers import OutputSpec
from parrot_mq.sdk.signature import DEFAULT_OUTPUT, Parameter, Role
from parrot_mq.sdk.template import Template, TemplateWarning, spaced_outputs

MAX_FORMS = 2048
"""Most encodings that are kept for one output: of each model, priority and session's consent that it was called with,
and sibling."""


@dataclasses.dataclass(frozen=True, slots=True)
class OutputPlan:
    """The request behind one output.

    Its prompt is the segments before index ``prompt_end``; ``names`` are the placeholders in it in order of first
    appearance, ``earlier`` those of them that are outputs of the same call (all outputs before this one).
    """

    name: str
    spec: OutputSpec
    prompt_end: int
    names: tuple[str, ...]
    earlier: tuple[str, ...]
    _forms: dict[tuple[str, int, int, bool], RequestForm] = dataclasses.field(
        default_factory=dict, compare=False, repr=False
    )

    def form(
        self, function: FunctionRecord, model: str, priority: int, sibling: int = 0, *, share_prefixes: bool = False
    ) -> RequestForm:
        """Return the form of the requests for sibling ``sibling`` of this output; equal ones are made once."""
        key = model, priority, sibling, share_prefixes
        form = self._forms.get(key)
        if form is None:
            sampling = self.spec.sibling_sampling(sibling)
            if len(self._forms) >= MAX_FORMS:
                self._forms.clear()
            form = self._forms[key] = RequestForm(
                function,
                self.prompt_end,
                self.names,
                self.name,
                model,
                sampling,
                self.spec.transform,
                priority,
                share_prefixes,
            )
        return form


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """A compiled function. ``parameters`` have their final roles: no ``Role.VARIABLE`` is left."""

    record: FunctionRecord
    parameters: tuple[Parameter, ...]
    outputs: tuple[OutputPlan, ...]


def compile_plan(name: str, template: Template, parameters: tuple[Parameter, ...]) -> Plan:
    """Match a template with a signature.

    Raises ``TemplateError`` for a placeholder without a parameter, a parameter without a placeholder, directions that
    contradict each other, and a template without output.
    """
    by_name = {parameter.name: parameter for parameter in parameters}
    outputs = _outputs(template, by_name)
    appearing = {placeholder.name for placeholder in template.placeholders}
    for parameter in parameters:
        if parameter.name not in appearing:
            raise TemplateError(
                f"{template.where}: parameter {parameter.name!r} appears nowhere in the template; "
                f"write {{{{{parameter.name}}}}} where it belongs, or remove it"
            )
    final = tuple(_settled(parameter, parameter.name in outputs) for parameter in parameters)
    record = FunctionRecord(name, template.segments(outputs))
    plans = _output_plans(record, outputs)
    for plan in plans[:-1]:
        if plan.spec.n > 1:
            raise TemplateError(
                f"{template.where}: output {plan.name!r} has n={plan.spec.n}, but only the last output of a template "
                "may have siblings; split the function there"
            )
    return Plan(record, final, plans)


def _outputs(template: Template, parameters: dict[str, Parameter]) -> dict[str, OutputSpec]:
    """Return the outputs by name, in the order of the template."""
    outputs: dict[str, OutputSpec] = {}
    for placeholder in template.placeholders:
        name, parameter = placeholder.name, parameters.get(placeholder.name)
        if name in outputs:
            continue
        if parameter is None:
            if placeholder.direction != "output":
                known = ", ".join(parameters) or "none"
                template.fail(
                    placeholder.position,
                    f"no parameter is called {name!r} (parameters: {known}); add it, or write {{{{output:{name}}}}}",
                )
            outputs[name] = DEFAULT_OUTPUT
        elif parameter.role is Role.OUTPUT and parameter.output is not None:
            outputs[name] = parameter.output
        elif placeholder.direction == "output":
            if parameter.role is not Role.VARIABLE:
                template.fail(placeholder.position, f"parameter {name!r} is an {parameter.role.value}, not an output")
            outputs[name] = DEFAULT_OUTPUT
    if not outputs:
        raise TemplateError(
            f"{template.where}: the template has no output; write {{{{output:name}}}} where the model is to continue"
        )
    return outputs


def _settled(parameter: Parameter, is_output: bool) -> Parameter:
    if parameter.role is not Role.VARIABLE:
        return parameter
    if is_output:
        return dataclasses.replace(parameter, role=Role.OUTPUT, output=DEFAULT_OUTPUT, default=None)
    return dataclasses.replace(parameter, role=Role.INPUT)


def _output_plans(record: FunctionRecord, outputs: dict[str, OutputSpec]) -> tuple[OutputPlan, ...]:
    names: dict[str, None] = {}
    plans: list[OutputPlan] = []
    for index, segment in enumerate(record.segments):
        if segment.kind is SegmentKind.OUTPUT:
            earlier = tuple(plan.name for plan in plans)
            plans.append(OutputPlan(segment.text, outputs[segment.text], index, tuple(names), earlier))
        if segment.kind is not SegmentKind.CONSTANT:
            names[segment.text] = None
    return tuple(plans)


def warn_of_spaces(plan: Plan, function: Callable[..., object] | None = None) -> None:
    """Warn (``TemplateWarning``, at the function's own line) where a constant ends in a space before an output."""
    for name in spaced_outputs(plan.record.segments):
        message = (
            f"{plan.record.name}: the text before output {name!r} ends in a space, which makes most models continue "
            "badly; remove it (the model generates its own space)"
        )
        code = getattr(function, "__code__", None)
        if code is None:
            warnings.warn(message, TemplateWarning, stacklevel=4)
        else:
            module = getattr(function, "__module__", None)
            warnings.warn_explicit(message, TemplateWarning, code.co_filename, code.co_firstlineno, module)
