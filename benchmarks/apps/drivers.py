"""Two ways to run an application: the whole graph submitted, or each call sent when its inputs have come back.

Both go through the same SDK to the same service with the same prompts, and both pay the network: an exchange takes a
round trip of 218 to 345 ms, half of it each way (Parrot, OSDI'24, section 8.1). Nothing is subtracted anywhere.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import random
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import orjson

import parrot_mq as P
from benchmarks.apps.application import Application, Function, Handle
from parrot_mq.store.records import RequestRecord

MIN_ROUND_TRIP_S, MAX_ROUND_TRIP_S, MEDIAN_ROUND_TRIP_S = 0.218, 0.345, 0.238
MEAN_ROUND_TRIP_S = 0.25
"""Of the draws, see ``Network``."""
GET_TIMEOUT_S = 36_000.0
Key: TypeAlias = tuple[str, int]
"""Name of an application, and number of a call within it: the same for everybody."""
READ_AT_ONCE = 200
"""Records read in one call, once the clock has stopped."""


class Network:
    """The way between a client and the service: draws a round trip for each exchange.

    The reference gives the least, the median (238 ms), the mean (244 ms) and the most: half of the draws lie evenly
    below the median, the others fall off above it by a triangle. ``scale`` 0 is a client beside the service.
    """

    def __init__(self, seed: int, scale: float = 1.0) -> None:
        self._random = random.Random(f"network {seed}")
        self._scale = scale

    def half_trip_s(self) -> float:
        """Return seconds one way of the next exchange takes; both ways take the same."""
        if self._random.random() < 0.5:
            trip_s = self._random.uniform(MIN_ROUND_TRIP_S, MEDIAN_ROUND_TRIP_S)
        else:
            trip_s = self._random.triangular(MEDIAN_ROUND_TRIP_S, MAX_ROUND_TRIP_S, MEDIAN_ROUND_TRIP_S)
        return self._scale * trip_s / 2


@dataclasses.dataclass(frozen=True, slots=True)
class Ran:
    """An application that has run, from its first call to its results in the client's hands, network included.

    Times are in seconds of the event loop's clock; ``first_s`` is when the first token of a streamed result was there.
    """

    start_s: float
    end_s: float
    num_output: int
    first_s: float = 0.0

    @property
    def elapsed_s(self) -> float:
        return self.end_s - self.start_s

    @property
    def normalised_s(self) -> float:
        """Seconds for each token of output, as the reference normalises latency."""
        return self.elapsed_s / self.num_output

    @property
    def tpot_s(self) -> float:
        """Seconds between output tokens after the first; for a streamed result."""
        return (self.end_s - self.first_s) / max(1, self.num_output - 1)


class Driver(Protocol):
    """Runs applications; several may run at once."""

    async def run(
        self, name: str, application: Application, objective: P.Objective = P.LATENCY, *, stream: bool = False
    ) -> Ran:
        """Run one, called ``name``, to its end.

        ``objective`` is what its results are asked for with, where anybody listens to that. ``stream`` reads the (only)
        result as it comes.
        """

    async def requests(self) -> list[RequestTrace]:
        """Return what became of every call so far, in the order in which they were made."""


@dataclasses.dataclass(frozen=True, slots=True)
class RequestTrace:
    """One call's life, epoch milliseconds as the store saw it, and what it computed; ``digest`` is of its output."""

    key: Key
    function: str
    engine: str
    created_ms: int
    ready_ms: int
    queued_ms: int
    started_ms: int
    done_ms: int
    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    digest: str


class _SdkDriver:
    """What both ways share: semantic functions of ``Function``, streams, and the traces of calls."""

    def __init__(self, client: P.Client, session: P.Session, network: Network) -> None:
        self._client, self._session, self._network = client, session, network
        self._functions: dict[Function, Any] = {}
        self._made: dict[Key, tuple[str, P.SemanticVariable]] = {}

    def _call(self, key: Key, function: Function, inputs: Sequence[str | P.SemanticVariable]) -> P.SemanticVariable:
        semantic = self._functions.get(function)
        if semantic is None:
            output = P.output(max_tokens=function.num_output, ignore_eos=True, temperature=0.0)
            semantic = P.SemanticFunction.from_template(
                function.template, name=function.name.replace(" ", "_"), outputs={"output": output}
            )
            self._functions[function] = semantic
        variable: P.SemanticVariable = semantic(*inputs, session=self._session)
        self._made[key] = function.name, variable
        return variable

    async def _read(self, variable: P.SemanticVariable, objective: P.Objective, stream: bool) -> float:
        """Wait for ``variable``; return when its first token was here."""
        first_s = 0.0
        if stream:
            async for _ in variable.stream(perf=objective, timeout_s=GET_TIMEOUT_S):
                first_s = first_s or asyncio.get_running_loop().time()
        await variable.get(perf=objective, timeout_s=GET_TIMEOUT_S)
        return first_s

    async def requests(self) -> list[RequestTrace]:
        traces: list[RequestTrace] = []
        keys = sorted(self._made)
        for start in range(0, len(keys), READ_AT_ONCE):
            made = [(key, *self._made[key]) for key in keys[start : start + READ_AT_ONCE]]
            reader = self._client.link.reader(self._session.id)
            variables = await reader.variables([variable.id for _, _, variable in made])
            known = [variable for variable in variables if variable is not None]
            records = await reader.requests([variable.producer for variable in known])
            if len(known) != len(made) or None in records:
                raise LookupError("a call has expired before its trace was read")
            for (key, name, _), variable, record in zip(made, known, records, strict=True):
                assert record is not None
                text = f"{variable.token_ids} {variable.value}"
                traces.append(_trace(key, name, record, hashlib.sha256(text.encode()).hexdigest()[:16]))
        return traces


class WholeGraph(_SdkDriver):
    """Ours: the application's calls go out as one submit, and only its results come back."""

    async def run(
        self, name: str, application: Application, objective: P.Objective = P.LATENCY, *, stream: bool = False
    ) -> Ran:
        loop = asyncio.get_running_loop()
        start_s, half_s = loop.time(), self._network.half_trip_s()
        await asyncio.sleep(half_s)
        calls = _Counted(name, self._call)
        results = application(calls)
        first_s = (await asyncio.gather(*(self._read(result, objective, stream) for result in results)))[0]
        await asyncio.sleep(half_s)
        return Ran(start_s, loop.time(), calls.num_output, first_s + half_s)


class ClientSide(_SdkDriver):
    """The client knows the graph, the service does not: a call is sent when the outputs it reads have come back.

    The client passes variables on, not their texts, so that a prompt has the same token ids on both sides. Calls whose
    inputs are there go out at once and together. Every call is asked for alike, as one that somebody waits for, which
    engines treat best; nothing is said about what it is for.
    """

    async def run(
        self, name: str, application: Application, objective: P.Objective = P.LATENCY, *, stream: bool = False
    ) -> Ran:
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        firsts: list[float] = []

        async def exchange(key: Key, function: Function, inputs: Sequence[str | Handle]) -> P.SemanticVariable:
            values = [value if isinstance(value, str) else await value for value in inputs]
            half_s = self._network.half_trip_s()
            await asyncio.sleep(half_s)
            variable = self._call(key, function, values)
            firsts.append(half_s + await self._read(variable, P.LATENCY, stream))
            await asyncio.sleep(half_s)
            return variable

        async with asyncio.TaskGroup() as tasks:
            calls = _Counted(name, lambda *call: tasks.create_task(exchange(*call)))
            application(calls)
        return Ran(start_s, loop.time(), calls.num_output, firsts[-1])


class _Counted:
    """``Calls`` of one application: numbers them, and adds up what is generated."""

    def __init__(self, application: str, call: Any) -> None:
        self._application, self._call = application, call
        self._num_calls = self.num_output = 0

    def call(self, function: Function, *inputs: str | Handle) -> Handle:
        if len(inputs) != function.num_inputs:
            raise ValueError(f"{function.name} takes {function.num_inputs} inputs, not {len(inputs)}")
        self._num_calls += 1
        self.num_output += function.num_output
        return self._call((self._application, self._num_calls), function, inputs)


def _trace(key: Key, name: str, record: RequestRecord, digest: str) -> RequestTrace:
    usage = orjson.loads(record.usage_json or b"{}")
    return RequestTrace(
        key=key,
        function=name,
        engine=record.engine,
        created_ms=record.created_ms,
        ready_ms=record.ready_ms,
        queued_ms=record.queued_ms,
        started_ms=record.started_ms,
        done_ms=record.done_ms,
        num_prompt_tokens=usage.get("num_prompt_tokens", 0),
        num_cached_tokens=usage.get("num_cached_tokens", 0),
        num_output_tokens=usage.get("num_output_tokens", 0),
        digest=digest,
    )
