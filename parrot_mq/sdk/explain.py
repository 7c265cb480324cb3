"""Finding out why variables are as they are: from Redis, and from the scheduler that leads."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from parrot_mq.messages import EngineRecord, Placed, RequestSpec, RequestState, VariableState
from parrot_mq.sdk.explanation import Explanation, consumer_of
from parrot_mq.sdk.request_info import RequestInfo, WaitingInput
from parrot_mq.store.connect import Store
from parrot_mq.store.reader import Reader, engines, requests_at_home, variables_at_home
from parrot_mq.store.records import RequestRecord, VariableRecord
from parrot_mq.store.why import ANSWER_WITHIN_S, Answers, ask

if TYPE_CHECKING:
    from parrot_mq.sdk.link import Link
    from parrot_mq.sdk.variable import SemanticVariable

MAX_INPUTS_SHOWN = 20
MAX_DEPTH = 8
"""How far back a chain of requests that wait for one another is followed."""
MAX_REQUESTS = 64
"""Requests in one explanation."""


async def explain(link: Link, variable: SemanticVariable, within_s: float = ANSWER_WITHIN_S) -> Explanation:
    """Return why ``variable`` is as it is, and why what it waits for is. Raises ``UnknownVariable``.

    The scheduler is waited for up to ``within_s``; what Redis alone shows is there without it.
    """
    record = await link.record(variable)
    (explanation,) = await explain_records(link.store, [record], within_s)
    return dataclasses.replace(explanation, name=record.name or variable.name)


async def explain_records(
    store: Store, variables: Sequence[VariableRecord], within_s: float = ANSWER_WITHIN_S
) -> list[Explanation]:
    """Return why variables are as they are, in their order."""
    chain = _Chain(store)
    await chain.follow([record.producer for record in variables if record.producer])
    answers = await chain.ask(within_s)
    names, asked_ms = await chain.names(), await store.partitions[0].now_ms()
    explanations = []
    for record in variables:
        producer, waits_for = chain.infos.get(record.producer), chain.tree(record.producer, set())
        asked = producer is not None and not producer.state.finished
        explanations.append(
            Explanation(
                record.id,
                record.name,
                record.state,
                record.objective,
                producer,
                waits_for,
                record.error,
                answers.note if asked else "",
                asked_ms,
                names,
            )
        )
    return explanations


class _Chain:
    """The requests that some request waits for, directly and indirectly, as far as they are looked at."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.infos: dict[str, RequestInfo] = {}
        self._inputs: dict[str, list[VariableRecord]] = {}
        """The unresolved inputs of each request that waits."""
        self._parameters: dict[str, dict[str, str]] = {}
        """By request: what its function calls each variable that it reads."""

    async def follow(self, requests: Iterable[str]) -> None:
        """Read requests and what they wait for, breadth first."""
        level = list(dict.fromkeys(requests))
        for _ in range(MAX_DEPTH):
            level = [i for i in level if i not in self.infos][: MAX_REQUESTS - len(self.infos)]
            if not level:
                return
            records = await requests_at_home(self._store, level)
            found = [info_of(record) for record in records]
            self.infos |= {info.id: info for info in found}
            self._parameters |= {record.id: _parameters(record) for record in records}
            waiting = [info for info in found if info.state is RequestState.WAITING and info.need]
            for info in waiting:
                self._inputs[info.id] = await self._unresolved(info)
            level = [record.producer for info in waiting for record in self._inputs[info.id] if record.producer]

    async def _unresolved(self, request: RequestInfo) -> list[VariableRecord]:
        records = await Reader(self._store.of(request.id)).variables(request.inputs, values=False)
        pending = [r for r in records if r and r.state is VariableState.PENDING][:MAX_INPUTS_SHOWN]
        # What is imported from another partition has its name and its producer there.
        at_home = {r.id: r for r in await variables_at_home(self._store, [r.id for r in pending])}
        return [at_home.get(r.id, r) for r in pending]

    async def ask(self, within_s: float) -> Answers:
        """Ask the scheduler about the unfinished requests, and the engines if it says nothing of those that need one.

        Of requests at an engine it says what they are for; that much goes without a note if it does not.
        """
        waiting = [
            info.id
            for info in self.infos.values()
            if info.state is RequestState.READY or (info.state is RequestState.WAITING and info.need)
        ]
        placed = [i.id for i in self.infos.values() if i.state in (RequestState.QUEUED, RequestState.RUNNING)]
        if not waiting and not placed:
            return Answers("", {})
        answers = await ask(self._store, [*waiting, *placed], within_s)
        for request in placed:
            self.infos[request] = dataclasses.replace(self.infos[request], standing=answers.standings.get(request))
        if not waiting:
            return Answers(answers.leader, answers.standings)
        records: list[EngineRecord] = []
        if answers.note:
            records = [record for record in (await engines(self._store)).values() if record is not None]
        for request in waiting:
            info = self.infos[request]
            serving = tuple(r for r in records if not info.model or r.model == info.model)
            is_ready = info.state is RequestState.READY and request not in answers.standings
            self.infos[request] = dataclasses.replace(
                info, standing=answers.standings.get(request), serving=serving if is_ready else ()
            )
        return answers

    def tree(self, request: str, shown: set[str]) -> tuple[WaitingInput, ...]:
        """Return what a request waits for; what is below a request in ``shown`` is not repeated."""
        found = []
        for record in self._inputs.get(request, ()):
            producer = self.infos.get(record.producer)
            if record.producer and producer is None:  # beyond what was looked at
                continue
            again = record.producer in shown
            below: tuple[WaitingInput, ...] = ()
            if producer is not None and not again:
                shown.add(record.producer)
                below = self.tree(record.producer, shown)
            parameter = self._parameters.get(request, {}).get(record.id, "")
            found.append(WaitingInput(record.id, record.name, record.state, producer, below, again, parameter))
        return tuple(found)

    async def names(self) -> dict[str, str]:
        """Return the names of what requests are for, and of whom their task groups feed."""
        aims = [info.aim for info in self.infos.values()]
        variables = dict.fromkeys(aim.objective_of for aim in aims if aim.objective_of)
        consumers = dict.fromkeys(consumer_of(aim.group) for aim in aims if aim.group)
        found = {record.id: record.name for record in await variables_at_home(self._store, variables)}
        return found | {r.id: r.function_name for r in await requests_at_home(self._store, consumers)}


def _parameters(record: RequestRecord) -> dict[str, str]:
    if not record.spec_json:  # it is finished
        return {}
    bindings = RequestSpec.from_json(record.spec_json).bindings
    return {binding.variable: name for name, binding in reversed(bindings.items()) if binding.variable}


def info_of(record: RequestRecord) -> RequestInfo:
    """Return a stored request as the application sees it."""
    is_placed = record.engine and record.why_json and record.state is not RequestState.READY
    return RequestInfo(
        id=record.id,
        function=record.function_name,
        call=record.call,
        state=record.state,
        engine=record.engine,
        attempt=record.attempt,
        need=record.need,
        inputs=record.inputs,
        output=record.output,
        created_ms=record.created_ms,
        ready_ms=record.ready_ms,
        queued_ms=record.queued_ms,
        started_ms=record.started_ms,
        done_ms=record.done_ms,
        model=record.model,
        placed=Placed.from_json(record.why_json) if is_placed else None,
    )
