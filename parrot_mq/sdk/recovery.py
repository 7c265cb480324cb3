"""Submitting again what a Redis that lost its last second does not know any more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from parrot_mq.sdk.graph import Request
from parrot_mq.sdk.variable import SemanticVariable
from parrot_mq.store.codec import encode_value

if TYPE_CHECKING:
    from parrot_mq.sdk.link import Link
    from parrot_mq.sdk.session import Session


async def resend(link: Link, variables: Sequence[SemanticVariable]) -> None:
    """Submit again, under the same ids, what Redis has lost of ``variables`` and of all that leads to them.

    What is still there is left alone. A variable whose value was seen here is sent with its value, not computed anew.
    Raises the submit's typed error: ``UnknownSession`` if the session itself has ended.
    """
    upstream = _upstream(variables)
    lost: dict[Session, tuple[list[SemanticVariable], list[Request]]] = {}
    for session, members in _by_session(upstream).items():
        reader = link.reader(session.id)
        records = await reader.variables([variable.id for variable in members], values=False)
        for variable, record in zip(members, records, strict=True):
            again = lost.setdefault(session, ([], []))
            request = variable._request
            if record is None:
                again[0].append(variable)
                if variable._text is not None and variable._given is None:
                    variable._given = encode_value(variable._text, link.store.settings, link.store.ids.token())
            if variable._text is None and request is not None and (record is None or not record.producer):
                again[1].append(request)
    for session, (missing, requests) in lost.items():
        await session.restore(missing, requests)


def _upstream(variables: Sequence[SemanticVariable]) -> list[SemanticVariable]:
    """Return ``variables`` and every unresolved variable of this process that they depend on, producers first."""
    seen = {variable.id: variable for variable in variables}
    queue = list(seen.values())
    for variable in queue:  # grows while it is walked
        if variable._request is not None:
            for used in variable._request.inputs:
                if used.id not in seen:
                    seen[used.id] = used
                    queue.append(used)
    return queue[::-1]


def _by_session(variables: Sequence[SemanticVariable]) -> dict[Session, list[SemanticVariable]]:
    found: dict[Session, list[SemanticVariable]] = {}
    for variable in variables:
        if variable.session is not None:
            found.setdefault(variable.session, []).append(variable)
    return found
