"""The engine worker: claims requests from Redis, has the engine run them, writes what comes out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from parrot_mq.errors import EngineFailed, ParrotError, StoreError
from parrot_mq.messages import EngineState
from parrot_mq.settings import WorkerSettings
from parrot_mq.store import EngineStore, Store
from parrot_mq.store.records import Assignment, Control
from parrot_workers.engine.port import EnginePort, EngineSpec
from parrot_workers.worker.keeper import Broken, Keeper, KeeperEvent, KeeperPort, KeeperTask, KeeperThread, Lost, Reaped
from parrot_workers.worker.receiver import receive_loop
from parrot_workers.worker.run import Leases
from parrot_workers.worker.runner import Runner
from parrot_workers.worker.stepper import Event, Failed, Loaded, Stepped, Stepper, StepThread
from parrot_workers.worker.vitals import Vitals

log = logging.getLogger(__name__)

FAREWELL_S = 5.0
"""How long each last word to Redis, and the engine's last step, may take."""


class EngineWorker:
    """One engine on one Redis.

    ``open_store`` connects (twice: the keeper has connections of its own); ``make_engine`` builds the engine, in the
    step thread. ``name`` is the model's public name, which requests ask for. With ``threaded_keeper`` off, heartbeats
    and renewals run on the caller's event loop, and ``make_stepper`` may give the engine another place than a thread
    (simulations).
    """

    def __init__(
        self,
        open_store: Callable[[], Awaitable[Store]],
        make_engine: Callable[[], EnginePort],
        *,
        name: str,
        kind: str,
        settings: WorkerSettings | None = None,
        threaded_keeper: bool = True,
        make_stepper: Callable[[Callable[[], EnginePort], Callable[[Event], None]], Stepper] = StepThread,
    ) -> None:
        self._open_store = open_store
        self._name = name
        self._kind = kind
        self._settings = settings or WorkerSettings()
        self._threaded_keeper = threaded_keeper
        self._stepper = make_stepper(make_engine, self._threadsafe)
        self._events: asyncio.Queue[Event | KeeperEvent] = asyncio.Queue()
        self._settled = asyncio.Event()
        """The engine is loaded, or the worker is to end."""
        self._stopping = asyncio.Event()
        self._closed = asyncio.Event()
        self._hurried = False
        self._patience: asyncio.Timeout | None = None
        self._renaming = asyncio.Lock()
        self._failure: Exception | None = None
        self.ready = asyncio.Event()
        """Set once the engine takes work."""
        self.hung = False
        """The step thread did not end in time: the process cannot end it either."""

    @property
    def engine_id(self) -> str:
        """The id of this incarnation, ``<name>-<token>``; known once ``run`` has connected."""
        return self._vitals.engine_id

    def stop(self, *, now: bool = False) -> None:
        """Begin to drain: claim nothing more, let what runs finish for ``drain_timeout_s`` (``now``: not at all)."""
        self._stopping.set()
        self._settled.set()
        if now:
            self._hurried = True
            if self._patience is not None and not self._patience.expired():
                self._patience.reschedule(self._loop.time())

    async def run(self) -> None:
        """Register, load the engine, serve until stopped, give back what is left, deregister.

        Raises ``StoreUnavailable`` if Redis cannot be reached at the start, what loading raised, and ``EngineFailed``
        if the engine raised out of a step.
        """
        self._loop = asyncio.get_running_loop()
        async with await self._open_store() as store:
            self._store = store
            leases = Leases()
            self._vitals = Vitals(self._new_id(), self._kind, self._name)
            keeper = Keeper(self._open_store, self._settings, leases, self._vitals.describe, self._threadsafe)
            self._keeper: KeeperPort = KeeperThread(keeper) if self._threaded_keeper else KeeperTask(keeper)
            try:
                await self._keeper.open()
                await self._work(store, leases)
            finally:
                await self._farewell()
        if isinstance(self._failure, ParrotError):
            raise self._failure
        if self._failure is not None:
            what = f"{type(self._failure).__name__}: {self._failure}"
            raise EngineFailed(f"engine {self.engine_id} failed: {what}") from self._failure

    def _new_id(self) -> str:
        return f"{self._name}-{self._store.ids.token()}"

    def _threadsafe(self, event: Event | KeeperEvent) -> None:
        """Take an event from another thread."""
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:
            if not self._loop.is_closed():
                raise

    async def _work(self, store: Store, leases: Leases) -> None:
        async with asyncio.TaskGroup() as group:
            self._group = group
            self._runner = Runner(group, store.settings, self._settings, leases, self._stepper, self._vitals)
            self._vitals.watch(lambda: self._stepper.stats, lambda: len(self._runner.claimer.backlog))
            consumer = group.create_task(self._consume())
            self._stepper.start()
            try:
                await self._settled.wait()
                if not self._stopping.is_set():
                    await self._serve(store)
            finally:
                # Flags, not cancellations alone: redis-py on Python 3.11 may swallow one.
                self._closed.set()
                self._runner.claimer.end()
                self._runner.streamed.close()
                self._runner.drop_all("the worker ends")
                consumer.cancel()

    async def _serve(self, store: Store) -> None:
        """Take work until stopped, then drain."""
        await self._briefly(self._keeper.beat(), "say that it is ready")
        log.info("engine %s serves model %s", self.engine_id, self._name)
        self.ready.set()
        self._group.create_task(self._runner.claimer.run())
        receiving = [
            self._group.create_task(
                receive_loop(
                    EngineStore(partition), lambda: self.engine_id, self._receive, self._reincarnate, self._closed
                )
            )
            for partition in store.partitions
        ]
        await self._stopping.wait()
        await self._drain()
        self._closed.set()
        for task in receiving:  # what a read under way was being given stays in the stream, for the reaper
            task.cancel()
        await asyncio.wait(receiving)
        await self._runner.claimer.close()

    async def _receive(self, store: EngineStore, assignments: list[Assignment], controls: list[Control]) -> None:
        self._runner.receive(store, assignments, controls)
        if any(control.kind == "drain" for control in controls):
            self.stop()

    async def _drain(self) -> None:
        runner = self._runner
        log.info("engine %s drains: %d run, %d wait", self.engine_id, len(runner.table), len(runner.claimer.backlog))
        self._vitals.become(EngineState.DRAINING)
        runner.streamed.close()
        await self._briefly(self._keeper.beat(), "say that it drains")
        await runner.claimer.close()
        await self._until_quiet(0.0 if self._hurried else self._settings.drain_timeout_s)
        await self._briefly(runner.give_back_running("the worker ends"), "give its requests back")
        await self._until_quiet(FAREWELL_S)

    async def _until_quiet(self, timeout_s: float) -> None:
        """Wait until every run has ended, for ``timeout_s`` or until somebody is in a hurry."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s) as self._patience:
                try:
                    await self._runner.claimer.quiet()
                finally:
                    self._patience = None

    async def _farewell(self) -> None:
        self.hung = not await self._stepper.end(FAREWELL_S)
        await self._briefly(self._keeper.leave(self.engine_id), "deregister")
        await self._keeper.close()

    async def _briefly(self, awaitable: Awaitable[object], what: str) -> None:
        """Await a word to Redis for a short time: without it the keeper's next one, or the reaper, does as well."""
        try:
            async with asyncio.timeout(FAREWELL_S):
                await awaitable
        except (TimeoutError, StoreError) as error:
            log.warning("engine %s could not %s: %s", self.engine_id, what, error or "timed out")

    async def _reincarnate(self, old: str) -> None:
        """Go on as another engine, after the reaper took this one for dead and gave its requests to others."""
        async with self._renaming:
            if self.engine_id != old:
                return
            self._runner.drop_all(f"engine {old} was taken for dead")
            self._vitals.rename(self._new_id())
            await self._briefly(self._keeper.beat(), "register anew")
            await self._briefly(self._keeper.leave(old), "take its former self off the list")
            log.warning("engine %s was taken for dead and goes on as %s", old, self.engine_id)

    async def _consume(self) -> None:
        """Handle what the step thread and the keeper say, in order."""
        while True:
            match await self._events.get():
                case Loaded(spec):
                    self._load(spec)
                    self._stepper.taken()
                case Stepped(outputs):
                    for output in outputs:
                        self._runner.advance(output)
                    self._stepper.taken()
                case Failed(error) | Broken(error):
                    self._break(error)
                case Lost(pairs, reason):
                    self._runner.lose(pairs, reason)
                case Reaped(engine_id):
                    self._group.create_task(self._reincarnate(engine_id))

    def _load(self, spec: EngineSpec) -> None:
        self._vitals.loaded(spec)
        self._runner.claimer.capacity = spec.max_num_seqs
        self._runner.streamed.block_size = spec.block_size
        if spec.tokenizer_digest:
            self._runner.delivery.identity = f"{spec.model}@{spec.tokenizer_digest}"
        self._settled.set()

    def _break(self, error: Exception) -> None:
        """The engine runs nothing any more: have everything tried elsewhere, then end."""
        if self.ready.is_set():
            log.error("engine %s failed: %s: %s", self.engine_id, type(error).__name__, error, exc_info=error)
        self._failure = self._failure or error
        self._vitals.become(EngineState.DRAINING)
        self._runner.fail_all(EngineFailed(f"engine {self.engine_id} failed: {type(error).__name__}: {error}"))
        self.stop()
