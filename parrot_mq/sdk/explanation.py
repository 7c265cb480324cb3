"""What the service knows about a variable, as records and as readable text."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping

from parrot_mq.errors import ErrorRecord
from parrot_mq.messages import EngineAnswer, Objective, Placed, Refusal, RequestState, Standing, VariableState
from parrot_mq.sdk.request_info import RequestInfo, WaitingInput

NAMES_SHOWN = 5
INDENT = "  "

_REASONS = {
    "company": "other urgent requests are there, and throughput work wants the engines that are free of them",
    "completion": "it is predicted to be done first there",
    "flight": "an equal request runs there, whose output it gets",
    "group": "its task group is there",
    "lane": "no other engine serves its model, and nothing waited",
    "resident": "the beginning of its prompt is cached there",
    "sharers": "one with the same beginning of the prompt went there",
}
_REFUSALS = {
    Refusal.DEAD: "has no heartbeat any more",
    Refusal.STARTING: "is still loading its model",
    Refusal.DRAINING: "is draining: it takes nothing more",
    Refusal.SUSPENDED: "refused the last one; it is asked again at its next heartbeat",
    Refusal.FULL: "is full",
    Refusal.MEMORY: "has too little KV memory left for it",
    Refusal.BOUND: "would break the time per token that was promised to one of them",
    Refusal.PACED: "holds throughput work off for a moment, for the sake of urgent requests",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Explanation:
    """Why a variable is as it is. ``str()`` gives it as a few readable lines; ``reason`` is the one that matters.

    ``note`` says why the scheduler said nothing, "" where it did, or need not. ``asked_ms`` is the server's time of it,
    epoch milliseconds (0: not known); ``names`` are of what is mentioned besides, by id.
    """

    variable: str
    name: str
    state: VariableState
    objective: Objective | None
    producer: RequestInfo | None
    waits_for: tuple[WaitingInput, ...]
    error: ErrorRecord | None
    note: str = ""
    asked_ms: int = 0
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def reason(self) -> str:
        """One sentence: what has happened, or what it waits for."""
        if self.state is VariableState.READY:
            return "it is ready"
        if self.state is VariableState.ERROR:
            return f"it failed: {self.error.message if self.error else 'for an unknown reason'}"
        if self.producer is None:
            return "nothing produces it; it waits to be set by hand"
        return f"its request {_label(self.producer)} {status(self.producer, self.waits_for)}"

    def __str__(self) -> str:
        label = f"{self.name} ({self.variable})" if self.name else self.variable
        text = _Text(self)
        lines = [f"{label} is {self.state.value}: {self.reason}"]
        if self.objective is not None:
            lines.append(f"{INDENT}objective: {self.objective.kind.value}")
        if self.producer is not None and not self.producer.state.finished:
            lines += _indented(text.details(self.producer, is_stated=self.objective is not None))
        lines += _indented(text.inputs(self.waits_for, self.producer))
        if self.note:
            lines.append(f"{INDENT}{self.note}")
        return "\n".join(lines)


def status(request: RequestInfo, waits_for: tuple[WaitingInput, ...] = ()) -> str:
    """Return what a request does, as the rest of a sentence that begins with it."""
    match request.state:
        case RequestState.WAITING if request.need == 0:
            return f"failed on attempt {request.attempt} and waits for its next one"
        case RequestState.WAITING:
            names = [waiting.parameter or waiting.name or waiting.id for waiting in waits_for]
            named = ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")
            return f"waits for {_counted(request.need, 'input')}{f': {named}' if named else ''}"
        case RequestState.READY:
            return _ready(request)
        case RequestState.QUEUED:
            return f"is queued at engine {request.engine}"
        case RequestState.RUNNING:
            return f"runs on engine {request.engine}, attempt {request.attempt}"
        case _:
            return f"is {request.state.value}"


def _ready(request: RequestInfo) -> str:
    standing = request.standing
    what = "its model" if not request.model else f"model {request.model}"
    if standing is None:
        return f"is ready and waits for an engine that serves {what}"
    if standing.state is not RequestState.READY:
        return f"is ready, and was {standing.state.value} a moment ago"
    if standing.held:
        return "is ready and waits for the rest of its submit"
    if standing.behind:
        return f"is ready and goes where an equal request goes, {standing.behind}"
    if not standing.engines:
        return f"is ready and waits for an engine that serves {what}: there is none"
    refusals = collections.Counter(answer.refusal.value for answer in standing.engines if answer.refusal)
    if sum(refusals.values()) == len(standing.engines):
        why = ", ".join(f"{count} {refusal}" if len(refusals) > 1 else refusal for refusal, count in refusals.items())
        many = f"none of the {standing.num_engines} engines that serve {what} takes" if standing.num_engines > 1 else ""
        return f"is ready, but {many or f'the engine that serves {what} does not take'} it now ({why})"
    return f"is ready and waits for its turn, {_counted(standing.num_before, 'request')} before it"


class _Text:
    """The lines of one explanation, in which ids are shown with the names that are known."""

    def __init__(self, explanation: Explanation) -> None:
        self._asked_ms = explanation.asked_ms
        self._names = {**explanation.names, explanation.variable: explanation.name}
        if explanation.producer is not None:
            self._names[explanation.producer.id] = explanation.producer.function
        todo = list(explanation.waits_for)
        for waiting in todo:  # grows while it is walked
            self._names[waiting.id] = waiting.name
            if waiting.producer is not None:
                self._names[waiting.producer.id] = waiting.producer.function
            todo += waiting.waits_for

    def details(self, request: RequestInfo, *, is_stated: bool = False) -> list[str]:
        """Return what is known of a request beyond its state. ``is_stated``: the objective of its output was shown."""
        lines = self._aim(request, is_stated)
        standing, placed = request.standing, request.placed
        if placed is not None and request.engine:
            past_ms = self._asked_ms - request.queued_ms if self._asked_ms and request.queued_ms else 0
            ago = f" {span(past_ms)} ago" if past_ms > 0 else ""
            lines.append(f"placed on {request.engine}{ago}: {_choice(placed)}")
        if standing is not None and standing.state is RequestState.READY and request.state is RequestState.READY:
            lines += _place(standing)
        elif standing is not None and standing.state is RequestState.WAITING and request.state is RequestState.WAITING:
            if standing.ready_in_ms:
                lines.append(f"its inputs are expected within about {span(standing.ready_in_ms)}")
            if standing.engine:
                tokens = f"{standing.planned_tokens} tokens of its prompt are prepared"
                lines.append(f"planned for {standing.engine}, where {tokens}")
        for record in request.serving:
            taken = f"{record.num_running} of {record.max_num_seqs} slots taken"
            lines.append(f"{record.id} says: {record.state.value}, {taken}")
        return lines

    def _aim(self, request: RequestInfo, is_stated: bool) -> list[str]:
        aim, lines = request.aim, []
        if aim.objective and aim.objective_of not in ("", request.output):
            lines.append(f"for {aim.objective}, deduced from what is asked of {self._named(aim.objective_of)}")
        elif aim.objective and not is_stated:
            lines.append(f"for {aim.objective}")
        if aim.group:
            consumer, stage = consumer_of(aim.group), aim.group.partition("~")[2]
            before = f"{_counted(int(stage), 'stage')} before those " if stage.isdigit() else ""
            size = _counted(aim.group_size, "parallel request") if aim.group_size > 1 else "the last one of those"
            lines.append(f"in a task group: {size} {before}that feed {self._named(consumer)}")
        return lines

    def inputs(self, waits_for: tuple[WaitingInput, ...], consumer: RequestInfo | None) -> list[str]:
        """Return what a request waits for, and what that waits for."""
        lines = []
        for waiting in waits_for:
            label = self._named(waiting.id)
            if waiting.parameter not in ("", waiting.name):
                label += f" as {waiting.parameter}"
            if waiting.producer is None:
                lines.append(f"waits for {label}: nothing produces it; it waits to be set by hand")
                continue
            does = status(waiting.producer, waiting.waits_for)
            lines.append(f"waits for {label}: {_label(waiting.producer)} {does}")
            if waiting.shown_above:
                lines[-1] += " (see above)"
                continue
            lines += _indented(self.details(waiting.producer))
            lines += _indented(self.inputs(waiting.waits_for, waiting.producer))
        if consumer is not None and waits_for and consumer.need > len(waits_for):
            lines.append(f"waits for {consumer.need - len(waits_for)} more")
        return lines

    def _named(self, object_id: str) -> str:
        name = self._names.get(object_id)
        return f"{name} ({object_id})" if name else object_id


def consumer_of(group: str) -> str:
    """Return the request that a task group feeds, directly or some stages later."""
    return group.partition("~")[0]


def _place(standing: Standing) -> list[str]:
    lines = [
        f"expected: {standing.prompt_tokens} tokens of prompt, {standing.output_tokens} of output",
        f"in line: {_counted(standing.num_before, 'request')} of its tenant before it, {standing.num_others} of others",
    ]
    lines += map(_answer, standing.engines)
    if standing.num_engines > len(standing.engines):
        lines.append(f"and {standing.num_engines - len(standing.engines)} more engines")
    return lines


def _choice(placed: Placed) -> str:
    text = _REASONS.get(placed.reason, placed.reason)
    if placed.predicted_ms:
        text += f"{', in' if placed.reason == 'completion' else '; done in'} about {span(placed.predicted_ms)}"
    if placed.considered:
        text += f" ({', '.join(f'{engine}: {span(ms)}' for engine, ms in placed.considered)})"
    return text


def _answer(answer: EngineAnswer) -> str:
    load = f"{answer.num_outstanding} requests for {answer.max_num_seqs} slots"
    text = "would take it" if answer.refusal is None else _REFUSALS[answer.refusal]
    done = f"; it would be done there in {span(answer.predicted_ms)}" if answer.predicted_ms else ""
    return f"{answer.id} {text} ({load}){done}"


def span(duration_ms: float) -> str:
    """Return a duration for reading."""
    if duration_ms < 1000:
        return f"{duration_ms:.0f} ms" if duration_ms >= 10 else f"{duration_ms:.1f} ms"
    return f"{duration_ms / 1000:.1f} s"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _label(request: RequestInfo) -> str:
    return f"{request.function} ({request.id})"


def _indented(lines: list[str]) -> list[str]:
    return [INDENT + line for line in lines]
