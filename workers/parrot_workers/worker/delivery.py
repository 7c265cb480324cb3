"""What a run produced, on its way to Redis: pieces of streams, values, failures."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from parrot_mq.errors import (
    BadType,
    EngineFailed,
    ErrorRecord,
    InvalidRequest,
    NotClaimed,
    StepError,
    StoreError,
    TransformFailed,
    ValueTooLarge,
)
from parrot_mq.settings import StoreSettings, WorkerSettings
from parrot_mq.store import EngineStore, encode_value
from parrot_mq.store.completion import MAX_COMPLETIONS, Completion
from parrot_mq.store.joined import Joined
from parrot_mq.store.records import Usage, Value
from parrot_workers.engine.port import FinishReason, SequenceOutput
from parrot_workers.worker.persist import persist
from parrot_workers.worker.run import Run
from parrot_workers.worker.stepper import monotonic_s
from parrot_workers.worker.stream_writer import StreamWriter
from parrot_workers.worker.transform import apply_transform

log = logging.getLogger(__name__)

MAX_CONCURRENT = 32
"""Failures being written at once; each takes a connection of the pool."""
MAX_WRITERS = 2
"""Calls that write completions to one partition at once."""


class Delivery:
    """Writes outcomes, each as soon as it is there and many at once. Its tasks belong to ``group``.

    ``engine_id`` is named in errors. ``fenced`` is called for a run that turned out to belong to somebody else; nothing
    more of it is written.
    """

    def __init__(
        self,
        group: asyncio.TaskGroup,
        store: StoreSettings,
        worker: WorkerSettings,
        engine_id: Callable[[], str],
        fenced: Callable[[Run, str], None],
    ) -> None:
        self._group = group
        self._store = store
        self._worker = worker
        self._engine_id = engine_id
        self._fenced = fenced
        self._slots = asyncio.Semaphore(MAX_CONCURRENT)
        self._completions: dict[EngineStore, Joined[Completion, StoreError | None]] = {}
        self._stream_writers: dict[EngineStore, StreamWriter] = {}
        self.identity = ""
        """``model@tokenizer_digest``; empty if generated ids mean nothing to anybody else."""

    def stream(self, run: Run) -> None:
        """Have what ``run`` has written as pieces of its stream, and what comes with each ``note``."""
        if run.answered is not None and not run.answered.done():
            run.answered.add_done_callback(lambda _: self.note(run))
        else:
            self.note(run)

    def note(self, run: Run) -> None:
        """A streamed run has something new. While its claim is not answered it keeps that."""
        if run.is_claimed:
            self._stream_writer(run.store).note(run)

    async def flush(self, run: Run) -> None:
        """Write what has not been streamed yet."""
        await run.claimed()
        await self._stream_writer(run.store).flush(run)

    async def finish(self, run: Run, output: SequenceOutput) -> None:
        """Write the outcome of ``run``: its value, or the error that it ended with."""
        if run.streamed:
            await self.flush(run)
        try:
            value, raw = await self._values(run, output)
        except StepError as error:
            await self.fail(run, error, retry=isinstance(error, EngineFailed))
            return
        now = monotonic_s()
        usage = Usage(
            num_prompt_tokens=output.num_prompt_tokens,
            num_cached_tokens=output.num_cached_tokens,
            num_output_tokens=output.num_output_tokens,
            queue_ms=round((run.started_s - run.received_s) * 1000, 3),
            run_ms=round((now - run.started_s) * 1000, 3),
            finish=output.finish.value if output.finish else "",
            shared=run.shared,
        )
        completion = Completion(*run.pair, run.spec.output, value, usage, raw)

        async def complete() -> None:
            try:
                await self._complete(run.store, completion)
            except NotClaimed:  # somebody streams it since it was offered
                await run.claimed()
                await self.flush(run)
                await self._complete(run.store, completion)

        await self._persist(run, complete)

    async def fail(self, run: Run, error: StepError, *, retry: bool) -> None:
        """Write a failed attempt."""
        request, fence = run.pair
        record = ErrorRecord(type(error).__name__, str(error), request, self._engine_id(), run.claim.attempt)
        log.info("request %s failed (%s): %s", request, "will be retried" if retry else "for good", error)

        await run.claimed()

        async def fail() -> None:
            async with self._slots:
                await run.store.fail(request, fence, record, retry=retry)

        await self._persist(run, fail)

    async def _complete(self, store: EngineStore, completion: Completion) -> None:
        """Write a completion, together with others. Raises what ``EngineStore.complete`` raises."""
        if store not in self._completions:
            self._completions[store] = Joined(
                store.complete_many, MAX_COMPLETIONS, self._group.create_task, max_calls=MAX_WRITERS
            )
        refusal = await self._completions[store](completion)
        if refusal is not None:
            raise refusal

    def _stream_writer(self, store: EngineStore) -> StreamWriter:
        if store not in self._stream_writers:
            interval_s = self._worker.emit_interval_ms / 1000
            self._stream_writers[store] = StreamWriter(store, self._group, interval_s, self._fenced)
        return self._stream_writers[store]

    async def _values(self, run: Run, output: SequenceOutput) -> tuple[Value, Value | None]:
        """Return the value to store and, where there is a transform, the raw text. Raises a ``StepError``."""
        if output.finish is FinishReason.INVALID:
            raise InvalidRequest(output.error or f"the engine cannot run request {run.spec.id}")
        if output.finish is FinishReason.ABORTED:
            raise EngineFailed(output.error or f"the engine ended request {run.spec.id} unasked")
        text, fence = output.full_text, run.claim.fence
        try:
            if run.spec.transform is None:
                ids = output.full_token_ids if self.identity else ()
                return encode_value(text, self._store, fence, ids, self.identity if ids else ""), None
            # In a thread: a search may take as long as its limit, and the other runs go on.
            transformed = await asyncio.to_thread(apply_transform, run.spec.transform, text)
            value = encode_value(transformed, self._store, fence)
            return value, encode_value(text, self._store, fence)
        except TransformFailed as error:
            where = f"output {run.spec.output_name!r} of {run.spec.function_name}"
            raise TransformFailed(f"{where}: {error}") from None
        except (ValueTooLarge, BadType) as error:
            where = f"output {run.spec.output_name!r} of {run.spec.function_name}"
            raise InvalidRequest(f"{where} cannot be stored: {error}") from None

    async def _persist(self, run: Run, write: Callable[[], Awaitable[None]]) -> None:
        """Write once Redis takes it; a run that is not ours any more is dropped."""

        async def write_one(_: Sequence[None]) -> list[None]:
            await write()
            return [None]

        await persist({run: None}, write_one, self._fenced)
