"""Scheduler and engine in one loop, for the SDK's tests: real scripts, deterministic text, faults on demand."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from parrot_mq.errors import ErrorRecord, Fenced
from parrot_mq.messages import EngineRecord, EngineState, RequestSpec
from parrot_mq.messages.function import FunctionRecord, SegmentKind
from parrot_mq.store import EngineStore, SchedulerStore, Store, encode_value
from parrot_mq.store.records import Assignment, Claim, DispatchItem, Usage
from parrot_mq.store.scheduler import import_variable, relay_outbox

Answer = Callable[[RequestSpec, str], str]


def echo(spec: RequestSpec, prompt: str) -> str:
    """The default answer: the function, its output and the prompt's size."""
    return f"<{spec.function_name}.{spec.output_name}:{len(prompt)}>"


class FakeService:
    """Runs every request as soon as it is ready, while ``running`` is set.

    ``answer(spec, prompt)`` makes the text; raising ``ErrorRecord``-carrying ``Failure`` fails the request. ``prompts``
    are those that were run, by output id. ``pieces`` cuts the text of streamed outputs.
    """

    def __init__(self, store: Store, answer: Answer = echo, partition: int = 0) -> None:
        self.store = store
        self.answer = answer
        self.partition = store.partition(partition)
        self.scheduler = SchedulerStore(self.partition)
        self.engine = EngineStore(self.partition)
        self.running = asyncio.Event()
        self.running.set()
        self.prompts: dict[str, str] = {}
        self.specs: dict[str, RequestSpec] = {}
        self.batches: list[str] = []
        self.streamed: set[str] = set()
        self.piece_size = 5
        self._stop = False
        self._functions: dict[str, FunctionRecord] = {}
        self._ready: dict[str, None] = {}

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[FakeService]:
        await self.engine.heartbeat(EngineRecord("engine-1", "fake", "fake-model", EngineState.READY))
        await self.partition.redis.persist(self.partition.keys.engine("engine-1"))
        task = asyncio.create_task(self._run())
        try:
            yield self
        finally:
            self._stop = True
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _run(self) -> None:
        after = "0-0"
        while not self._stop:
            entries = await self.scheduler.read_intake(after, block_ms=None)
            for entry in entries:
                after = entry.id
                await self._fold(entry.kind, entry.fields)
            while await self.scheduler.propagate():
                pass
            if self._ready and self.running.is_set():
                await self._serve()
            elif not entries:
                await asyncio.sleep(0.001)

    async def _fold(self, kind: str, fields: dict[str, str]) -> None:
        if kind == "submitted":
            self.batches.append(fields["batch"])
            states = [item.split(":") for item in fields["states"].split()]
            self._ready.update((rid, None) for rid, _, state in states if state == "ready")
        self._ready.update((item.split(":")[0], None) for item in fields.get("ready", "").split())
        if kind == "import":
            status = await import_variable(
                self.store, self.partition.keys.partition, fields["variable"], fields["tenant"]
            )
            assert status in ("pending", "delivered")
        if kind == "outbox":
            await relay_outbox(self.store, self.partition)
        if kind == "released":
            self._ready[fields["request"]] = None

    async def _serve(self) -> None:
        ready = list(self._ready)[:256]
        for rid in ready:
            del self._ready[rid]
        items = [DispatchItem(rid, "engine-1") for rid in ready]
        fences = await self.scheduler.dispatch(items, [self.store.ids.token() for _ in items])
        if not any(fences):
            return
        answer = await self.partition.redis.xreadgroup(
            "engine", "engine-1", {self.partition.keys.engine_queue("engine-1"): ">"}, count=1000
        )
        assignments = [
            Assignment(entry_id, fields["request"], fields["fence"], "{}")
            for entry_id, fields in answer[0][1]
            if "request" in fields
        ]
        claims = [claim for claim in await self.engine.start("engine-1", assignments) if claim is not None]
        for start in range(0, len(claims), 16):
            async with asyncio.TaskGroup() as group:
                for claim in claims[start : start + 16]:
                    group.create_task(self._finish(claim))

    async def _finish(self, claim: Claim) -> None:
        with contextlib.suppress(Fenced):
            await self._complete(claim)

    async def _complete(self, claim: Claim) -> None:
        spec = RequestSpec.from_json(claim.spec_json)
        prompt = await self._prompt(claim, spec)
        self.prompts[spec.output], self.specs[spec.output] = prompt, spec
        try:
            text = self.answer(spec, prompt)
        except Failure as failure:
            error = ErrorRecord(failure.kind, str(failure), claim.request, "engine-1", claim.attempt)
            await self.engine.fail(claim.request, claim.fence, error, retry=False)
            return
        if claim.streamed:
            self.streamed.add(spec.output)
            for start in range(0, len(text), self.piece_size):
                piece = text[start : start + self.piece_size]
                await self.engine.emit(claim.request, claim.fence, start, [ord(c) for c in piece], piece)
        raw = None
        if spec.transform is not None:
            raw, text = encode_value(text, self.store.settings, self.store.ids.token()), text.strip()
        value = encode_value(text, self.store.settings, self.store.ids.token())
        await self.engine.complete(claim.request, claim.fence, spec.output, value, Usage(), raw)

    async def _prompt(self, claim: Claim, spec: RequestSpec) -> str:
        function = self._functions.get(spec.function)
        if function is None:
            function = await self.engine.function(claim.tenant, spec.function)
            assert function is not None
            self._functions[spec.function] = function
        texts = {i.id: i.text if i.text is not None else await self.engine.fetch(i.reference) for i in claim.inputs}
        parts = []
        for segment in function.segments[: spec.prompt_end]:
            if segment.kind is SegmentKind.CONSTANT:
                parts.append(segment.text)
                continue
            binding = spec.bindings[segment.text]
            parts.append(binding.text if binding.text is not None else texts[binding.variable] or "")
        return "".join(parts)


async def eventually(condition: Callable[[], bool], timeout_s: float = 10.0) -> bool:
    """Wait until ``condition()`` holds; False if it does not within ``timeout_s``."""
    for _ in range(round(timeout_s / 0.01)):
        if condition():
            return True
        await asyncio.sleep(0.01)
    return False


class Failure(Exception):
    """Raised by an answer: the request fails for good, with an error of ``kind``."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
