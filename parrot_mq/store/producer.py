"""What the SDK does to the store: sessions, submits, values, objectives, cancellation."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Sequence
from typing import Protocol

from parrot_mq.keys import partition_of
from parrot_mq.messages import FunctionRecord, Objective, ObjectiveKind, RequestSpec, VariableState
from parrot_mq.store.answers import checked
from parrot_mq.store.partition import Partition
from parrot_mq.store.reader import Reader
from parrot_mq.store.records import NewVariable, Value

BATCH_IDS = 64
"""Ids in one call of a script that walks over ids."""


class EncodedRequest(Protocol):
    """A request that is encoded already: ``to_json`` gives what ``RequestSpec.to_json`` gives."""

    @property
    def id(self) -> str:
        """Its id."""

    @property
    def call(self) -> str:
        """The id of the call that it is part of."""

    @property
    def function_name(self) -> str:
        """The name of its function."""

    @property
    def model(self) -> str:
        """The name of the model; empty: whatever engine there is."""

    @property
    def output(self) -> str:
        """The id of the variable that it produces."""

    def to_json(self) -> str:
        """Return it as one line of JSON."""


class ProducerStore:
    """State changes that an application asks for, in one partition."""

    def __init__(self, partition: Partition) -> None:
        self.partition = partition

    async def open_session(self, session_id: str, tenant: str, secret_hash: str = "") -> None:
        """Create a session; the same call again changes nothing. ``Conflict`` if another tenant has the id."""
        checked(await self.partition.call("open_session", session_id, tenant, secret_hash))

    async def stage(self, variable_id: str, value: Value, *, raw: bool = False) -> None:
        """Write a large value to its own key, with a TTL that the script which refers to it removes."""
        await self.partition.stage(variable_id, value, raw=raw)

    async def submit(
        self,
        session_id: str,
        batch: str,
        functions: Iterable[FunctionRecord],
        variables: Sequence[NewVariable],
        requests: Sequence[tuple[RequestSpec | EncodedRequest, tuple[str, ...]]],
        *,
        last: bool,
    ) -> None:
        """Submit one chunk of a batch: functions, new variables, and requests (each with its input ids) in
        topological order. All of it takes effect, or nothing.

        Large values must be staged first. The same chunk again is a no-op. Raises a ``SubmitError`` that names the
        culprit, or ``Overloaded``.
        """
        args: list[str | int] = [session_id, batch, "1" if last else ""]
        functions = list(functions)
        args.append(len(functions))
        for function in functions:
            args += [function.digest, function.name, function.segments_json]
        args.append(len(variables))
        for variable in variables:
            value = variable.value
            args += [variable.id, variable.name]
            if value is None:
                args += ["", "", "", 0, ""]
            else:
                args += ["1", value.inline, value.fence, value.size_bytes, value.digest]
            args.append(_statement_text(variable.objective) if variable.objective else "")
        args.append(len(requests))
        for spec, inputs in requests:
            text = spec.to_json()
            digest = hashlib.sha256(text.encode()).hexdigest()[:32]
            args += [
                spec.id,
                spec.call,
                spec.function_name,
                spec.model,
                spec.output,
                text,
                digest,
                len(inputs),
                *inputs,
            ]
        checked(await self.partition.call("submit", *args))

    async def discard(self, batch: str, request_ids: Sequence[str], variable_ids: Sequence[str]) -> None:
        """Undo a batch of which a later chunk failed: requests that ``batch`` made are cancelled and deleted."""
        for start in range(0, len(request_ids), BATCH_IDS):
            part = request_ids[start : start + BATCH_IDS]
            await self.partition.call("discard", batch, "r", *part)
        for start in range(0, len(variable_ids), BATCH_IDS):
            part = variable_ids[start : start + BATCH_IDS]
            await self.partition.call("discard", batch, "v", *part)

    async def set_variable(self, variable_id: str, value: Value) -> None:
        """Give a variable its value by hand. The first writer wins; the same value again is a no-op.

        Raises ``UnknownVariable``, ``AlreadySet``, or ``AlreadyProduced`` if a request produces it.
        """
        await self.stage(variable_id, value)
        answer = await self.partition.call(
            "set_variable", variable_id, "value", value.inline, value.fence, value.size_bytes, value.digest,
            value.tokens_text, value.tokens_by, "",
        )  # fmt: skip
        checked(answer)

    async def want(self, variable_id: str, objective: Objective | None = None, *, stream: bool = False) -> bool:
        """State an objective for a variable (the strictest one stated so far holds) and, with ``stream``, that its
        output is to be streamed. Returns False for an unknown id.
        """
        return (await self.wants([(variable_id, objective)], stream=stream))[0] is not None

    async def wants(
        self, items: Sequence[tuple[str, Objective | None]], *, stream: bool = False
    ) -> list[VariableState | None]:
        """``want`` for many variables; return the variables' states, None for unknown ones."""
        states: list[VariableState | None] = []
        to_stream = "1" if stream else ""
        for start in range(0, len(items), BATCH_IDS):
            part = items[start : start + BATCH_IDS]
            args = [arg for variable_id, objective in part for arg in (variable_id, *_statement(objective), to_stream)]
            (answers,) = checked(await self.partition.call("want", *args))
            states += [VariableState(state) if state else None for state in answers]
        return states

    async def cancel_requests(self, request_ids: Sequence[str], reason: str = "cancelled by the application") -> int:
        """Cancel requests that are not finished; returns how many were. Their outputs, and all downstream, get a
        ``Cancelled`` error.
        """
        count = 0
        for start in range(0, len(request_ids), BATCH_IDS):
            part = request_ids[start : start + BATCH_IDS]
            count += int(checked(await self.partition.call("cancel", "Cancelled", reason, *part))[0])
        return count

    async def cancel_variable(self, variable_id: str, reason: str = "cancelled by the application") -> int:
        """Cancel what produces a variable; a variable without a producer becomes a ``Cancelled`` error itself."""
        partition_of(variable_id, "v")
        answer = await self.partition.call("cancel", "Cancelled", reason, variable_id)
        return int(checked(answer)[0])

    async def close_session(self, session_id: str) -> None:
        """Let a session take no more work; what it has submitted goes on, its variables stay for their TTL."""
        checked(await self.partition.call("close_session", session_id))

    async def cancel_session(self, session_id: str, kind: str = "Cancelled", reason: str = "session cancelled") -> int:
        """Close a session and cancel all that is live in it; returns the number of cancelled requests."""
        await self.close_session(session_id)
        count = 0
        async for ids in Reader(self.partition).session_id_pages(session_id, BATCH_IDS):
            requests = [i for i in ids if partition_of(i) == self.partition.keys.partition and "-r-" in i]
            if requests:
                count += int(checked(await self.partition.call("cancel", kind, reason, *requests))[0])
        return count

    async def delete_session(self, session_id: str) -> None:
        """Cancel what is live in a session, then delete it with all its variables and requests."""
        await self.cancel_session(session_id, "Expired", "the session was deleted")
        while True:
            left = int(checked(await self.partition.call("delete_ids", session_id, BATCH_IDS))[0])
            if left == 0:
                return


def _statement(objective: Objective | None) -> tuple[str, int, int, str]:
    """Return an objective as the scripts want it: kind, value in milliseconds, strictness, whether it is a deadline."""
    if objective is None:
        return "", 0, 0, "0"
    is_deadline = "1" if objective.kind is ObjectiveKind.DEADLINE else "0"
    return objective.kind.value, objective.value_ms, objective.strictness, is_deadline


@functools.lru_cache(maxsize=256)
def _statement_text(objective: Objective) -> str:
    return " ".join(map(str, _statement(objective)))
