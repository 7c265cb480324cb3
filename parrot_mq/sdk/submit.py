"""Sending a submission: validated whole, sorted, cut into chunks, undone as a whole where a chunk is refused."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence

from parrot_mq.errors import CycleError, Overloaded, ParrotError, StoreUnavailable
from parrot_mq.messages import FunctionRecord
from parrot_mq.sdk.graph import Request
from parrot_mq.sdk.variable import SemanticVariable
from parrot_mq.store.producer import ProducerStore
from parrot_mq.store.records import NewVariable

MAX_CHUNK_INPUTS = 1_000
"""Most input references in one chunk (Redis is blocked for about 10 us by each); a request with more goes alone."""
MAX_CHUNK_VARIABLES = 256
MAX_CHUNK_BYTES = 1 << 20


@dataclasses.dataclass(slots=True)
class Chunk:
    """What one call of the submit script carries."""

    variables: list[SemanticVariable] = dataclasses.field(default_factory=list)
    requests: list[Request] = dataclasses.field(default_factory=list)
    num_inputs: int = 0
    num_bytes: int = 0

    @property
    def functions(self) -> Iterable[FunctionRecord]:
        """The functions of its requests, each once."""
        return {request.function.digest: request.function for request in self.requests}.values()


def check_cycles(requests: Iterable[Request]) -> None:
    """Raise ``CycleError`` that lists the cycle, if a request's inputs depend on its own output."""
    for request in requests:
        path = _path_up(request, request.output) if request.late else None
        if path is not None:
            text = " -> ".join([*path, path[0]])
            raise CycleError(
                f"{request.function_name}: its output {request.form.output_name!r} leads back to its own input: {text}",
                request.output,
            )


def _path_up(request: Request, target: str) -> list[str] | None:
    """Return the variables from ``target`` down to the inputs of ``request``, None if these do not depend on it."""
    below: dict[str, str] = {variable.id: "" for variable in request.inputs}
    stack = list(request.inputs)
    while stack:
        variable = stack.pop()
        if variable.id == target:
            path, at = [], variable.id
            while at:
                path.append(at)
                at = below[at]
            return path
        if variable._request is not None and variable._request is not request:
            for upstream in variable._request.inputs:
                if upstream.id not in below:
                    below[upstream.id] = variable.id
                    stack.append(upstream)
    return None


def in_order(requests: Sequence[Request]) -> Sequence[Request]:
    """Return ``requests`` with producers before consumers; they hold no cycle (``check_cycles``)."""
    position = {request.output: index for index, request in enumerate(requests)}
    before = [[position[variable.id] for variable in request.inputs if variable.id in position] for request in requests]
    if all(producer < index for index, producers in enumerate(before) for producer in producers):
        return requests
    after: list[list[int]] = [[] for _ in requests]
    for index, producers in enumerate(before):
        for producer in producers:
            after[producer].append(index)
    missing = [len(producers) for producers in before]
    order = [index for index, count in enumerate(missing) if not count]
    for index in order:  # grows while it is walked
        for consumer in after[index]:
            missing[consumer] -= 1
            if not missing[consumer]:
                order.append(consumer)
    return [requests[index] for index in order]


def cut(variables: Sequence[SemanticVariable], requests: Sequence[Request], max_requests: int) -> list[Chunk]:
    """Return chunks: each variable no later than the first request that names it, requests in their order."""
    left = {variable._id: variable for variable in variables}
    chunks = [Chunk()]

    def carry(variable: SemanticVariable) -> None:
        size = variable._given.size_bytes if variable._given is not None and not variable._given.fence else 0
        chunk = chunks[-1]
        is_full = chunk.num_bytes > 0 and chunk.num_bytes + size > MAX_CHUNK_BYTES
        if is_full or len(chunk.variables) >= MAX_CHUNK_VARIABLES:
            chunk = Chunk()
            chunks.append(chunk)
        chunk.variables.append(variable)
        chunk.num_bytes += size

    for request in requests:
        for variable in request.inputs:
            if left.pop(variable._id, None) is not None:
                carry(variable)
        if (made := left.pop(request.output, None)) is not None:
            carry(made)
        chunk = chunks[-1]
        num_inputs, size = len(request.inputs), len(request.text)
        if chunk.requests and (
            len(chunk.requests) >= max_requests
            or chunk.num_inputs + num_inputs > MAX_CHUNK_INPUTS
            or chunk.num_bytes + size > MAX_CHUNK_BYTES
        ):
            chunk = Chunk()
            chunks.append(chunk)
        chunk.requests.append(request)
        chunk.num_inputs += num_inputs
        chunk.num_bytes += size
    for variable in left.values():
        carry(variable)
    return chunks


class Sender:
    """Sends submissions into one partition."""

    def __init__(self, producer: ProducerStore, token: Callable[[], str], max_requests: int, timeout_s: float) -> None:
        self._producer = producer
        self._token = token
        self._max_requests = max_requests
        self._timeout_s = timeout_s

    async def send(self, session_id: str, variables: Sequence[SemanticVariable], requests: Sequence[Request]) -> None:
        """Submit all of it or, as far as Redis can be reached, nothing.

        Raises the typed error of the chunk that was refused, ``CycleError``, or ``Overloaded`` once the time for
        submits is over.
        """
        if any(request.premade for request in requests):
            check_cycles(requests)
            requests = in_order(requests)
        chunks = cut(variables, requests, self._max_requests)
        batch = self._token()
        deadline = time.monotonic() + self._timeout_s
        for index, chunk in enumerate(chunks):
            try:
                await self._send_chunk(session_id, batch, chunk, last=index == len(chunks) - 1, deadline=deadline)
            except ParrotError as error:
                await self._undo(batch, chunks[: index + 1], error)
                raise

    async def _send_chunk(self, session_id: str, batch: str, chunk: Chunk, *, last: bool, deadline: float) -> None:
        variables = []
        for made in chunk.variables:
            made._stated = made._wanted
            variables.append(NewVariable(made._id, made._name, made._given, made._stated))
        requests = [(request, tuple([used._id for used in request.inputs])) for request in chunk.requests]
        while True:
            try:
                for variable in variables:
                    if variable.value is not None and variable.value.fence:
                        await self._producer.stage(variable.id, variable.value)
                await self._producer.submit(session_id, batch, chunk.functions, variables, requests, last=last)
            except Overloaded as error:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise
                await asyncio.sleep(min(error.retry_after_s, left_s))
            else:
                return

    async def _undo(self, batch: str, chunks: Sequence[Chunk], error: ParrotError) -> None:
        """Discard what was sent of a batch. A single chunk that was refused left nothing, one without answer may."""
        if len(chunks) < 2 and not isinstance(error, StoreUnavailable):
            return
        requests = [request.id for chunk in chunks for request in chunk.requests]
        variables = [variable._id for chunk in chunks for variable in chunk.variables]
        try:
            await self._producer.discard(batch, requests, variables)
        except ParrotError as problem:
            error.add_note(f"part of the submit may be left in Redis, for undoing it failed as well: {problem}")
