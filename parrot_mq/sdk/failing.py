"""Why a wait failed: the typed error, and the chain of steps from the one that failed to the variable asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from parrot_mq.errors import ErrorRecord, GetTimeout, NeverSet, ParrotError, Step, StepError, step_error
from parrot_mq.sdk.explain import explain
from parrot_mq.store.reader import requests_at_home, variables_at_home

if TYPE_CHECKING:
    from parrot_mq.sdk.collect import Collector
    from parrot_mq.sdk.link import Link
    from parrot_mq.sdk.variable import SemanticVariable

MAX_LEVELS = 32
"""How far up the graph of other processes a failure is traced, in round trips."""
MAX_NODES = 2_000
EXPLAIN_TIMEOUT_S = 2.0


async def fail_collected(link: Link, collector: Collector) -> None:
    """Raise the error of the first variable that failed, if the collector cannot have what it wants."""
    if collector.count is not None and len(collector.ready) >= collector.count:
        return
    if collector.failure is not None:
        raise await step_failure(link, collector.failure)


async def step_failure(link: Link, variable: SemanticVariable) -> StepError:
    """Return the typed error of a variable that failed, with its chain."""
    assert variable._failure is not None
    record, chain = variable._failure
    if chain is None:
        chain = _local_chain(variable, record.request)
        if chain is None:
            chain = await _stored_chain(link, variable._id, record)
        variable._failure = (record, chain)
        if variable._request is not None:  # the graph before it is not needed any more
            variable._request.inputs = ()
    return step_error(record, chain)


async def not_in_time(link: Link, collector: Collector, timeout_s: float) -> ParrotError:
    """Return the error for a wait that ran out of time: ``NeverSet`` or ``GetTimeout``, with what is in the way."""
    variable = next(iter(collector.left()), collector.variables[0])
    name = f"{variable.name or 'variable'} ({variable.id})"
    if refused := variable._refused():
        return refused
    kind, reason = "GetTimeout", "Redis did not answer in time"
    try:
        async with asyncio.timeout(EXPLAIN_TIMEOUT_S):
            explanation = await explain(link, variable)
        reason = explanation.reason
        if explanation.producer is None:
            kind, reason = "NeverSet", "nothing produces it and nobody has set it; call variable.set(...) or a function"
    except (TimeoutError, ParrotError) as problem:
        reason = f"{reason} ({problem})" if str(problem) else reason
    record = ErrorRecord(kind, f"{name} is not resolved after {timeout_s:g} s: {reason}")
    return {"NeverSet": NeverSet, "GetTimeout": GetTimeout}[kind](record.message, record)


def _local_chain(variable: SemanticVariable, failed: str) -> tuple[Step, ...] | None:
    """Return the chain through the graph that this process made, None if the failed request is not part of it."""
    below: dict[str, SemanticVariable | None] = {variable._id: None}
    queue = [variable]
    for at in queue:  # grows while it is walked
        if at._request is None:
            continue
        if at._request.id == failed:
            return tuple(_steps_down(at, below))
        for upstream in at._request.inputs:
            if upstream._id not in below:
                below[upstream._id] = at
                queue.append(upstream)
    return None


def _steps_down(start: SemanticVariable, below: dict[str, SemanticVariable | None]) -> list[Step]:
    steps = []
    at: SemanticVariable | None = start
    while at is not None:
        if at._request is not None:
            request = at._request
            steps.append(Step(request.id, request.function_name, at._id, at._name or request.form.output_name))
        at = below[at._id]
    return steps


async def _stored_chain(link: Link, variable_id: str, record: ErrorRecord) -> tuple[Step, ...]:
    """Return the chain as Redis has it, following inputs that failed; as much of it as is found."""
    steps: dict[str, Step] = {}
    below: dict[str, str] = {variable_id: ""}
    level: Sequence[str] = [variable_id]
    top = variable_id
    for _ in range(MAX_LEVELS):
        found = await _producers(link, level, steps)
        reached = [vid for vid in level if vid in steps and steps[vid].request == record.request]
        if reached:
            top = reached[0]
            break
        following: list[str] = []
        for vid, inputs in found:
            for upstream in inputs:
                if upstream not in below and len(below) < MAX_NODES:
                    below[upstream] = vid
                    following.append(upstream)
        if not following:
            break
        level = following
    path = []
    while top:
        if top in steps:
            path.append(steps[top])
        top = below[top]
    return tuple(path)


async def _producers(link: Link, ids: Sequence[str], steps: dict[str, Step]) -> list[tuple[str, tuple[str, ...]]]:
    """Note the steps that produce those of ``ids`` that failed; return their inputs."""
    failed = {v.producer: v for v in await variables_at_home(link.store, ids) if v.error and v.producer}
    found = []
    for request in await requests_at_home(link.store, failed):
        variable = failed[request.id]
        steps[variable.id] = Step(request.id, request.function_name, variable.id, variable.name)
        found.append((variable.id, request.inputs))
    return found
