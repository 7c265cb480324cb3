"""Many variables at once: the fan-out and fan-in stay on the service."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

from parrot_mq.messages import LATENCY, Objective
from parrot_mq.sdk.collect import Collector
from parrot_mq.sdk.function import SemanticFunction
from parrot_mq.sdk.variable import SemanticVariable, VariableList, one_link


def flat(variables: Iterable[SemanticVariable | Iterable[SemanticVariable]]) -> list[SemanticVariable]:
    """Return single variables and those of lists, in order."""
    found: list[SemanticVariable] = []
    for item in variables:
        if isinstance(item, SemanticVariable):
            found.append(item)
        else:
            found.extend(item)
    return found


async def gather(
    *variables: SemanticVariable | Iterable[SemanticVariable],
    perf: Objective | None = LATENCY,
    timeout_s: float | None = None,
) -> list[str]:
    """Wait for all ``variables`` (lists are flattened) and return their values in order.

    The wait costs a few round trips for all of them together. Raises the typed error of the first one that fails;
    the others go on. See ``SemanticVariable.get`` for ``perf`` and ``timeout_s``.
    """
    all_of = flat(variables)
    return await one_link(all_of).resolve(all_of, perf, timeout_s) if all_of else []


async def first(
    k: int,
    *variables: SemanticVariable | Iterable[SemanticVariable],
    perf: Objective | None = LATENCY,
    timeout_s: float | None = None,
) -> VariableList:
    """Return the first ``k`` of ``variables`` that have a value, in order of arrival, and cancel the rest.

    Failures are passed over; where too many fail, the first failure is raised. ``ValueError`` for a ``k`` that is not
    between 1 and the number of variables.
    """
    all_of = list({variable.id: variable for variable in flat(variables)}.values())
    if not 1 <= k <= len(all_of):
        raise ValueError(f"first({k}, ...) of {len(all_of)} variables: k must be from 1 to the number of variables")
    link = one_link(all_of)
    collector = Collector(all_of, perf, k)
    await link.wait(collector, timeout_s)
    chosen = collector.ready[:k]
    rest = [variable for variable in all_of if variable not in set(chosen) and not variable._is_settled]
    if rest:
        await link.cancel(rest, f"the first {k} of its siblings are enough")
    return VariableList(chosen)


@overload
def map(function: SemanticFunction[..., SemanticVariable], items: Iterable[Any], **kwargs: Any) -> VariableList: ...  # noqa: A001
@overload
def map(function: Callable[..., SemanticVariable], items: Iterable[Any], **kwargs: Any) -> VariableList: ...  # noqa: A001
def map(function: Callable[..., SemanticVariable], items: Iterable[Any], **kwargs: Any) -> VariableList:  # noqa: A001 - as P.map
    """Call ``function(item, **kwargs)`` for each item; nothing is awaited, and all calls go out as one submit."""
    return VariableList(function(item, **kwargs) for item in items)
