"""From assignments to sequences: what waits is claimed when the engine has room, and its prompt put together."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Sequence

from parrot_mq.errors import Fenced, InvalidRequest, StoreError
from parrot_mq.messages import FunctionRecord, RequestSpec
from parrot_mq.settings import WorkerSettings
from parrot_mq.store.engine import EngineStore
from parrot_mq.store.records import Assignment, Claim, Control
from parrot_workers.engine.port import SequenceInput
from parrot_workers.worker.backlog import Backlog, Waiting
from parrot_workers.worker.plan import Plan
from parrot_workers.worker.prompt import FunctionCache, fetch_inputs, prompt_segments
from parrot_workers.worker.run import Run, sequence_id
from parrot_workers.worker.stepper import StepThread, monotonic_s
from parrot_workers.worker.table import RunTable

log = logging.getLogger(__name__)

MAX_UNWRITTEN = 1024
"""Outcomes that may wait for Redis before no more is claimed."""
RETRY_S = 0.2


class Claimer:
    """Claims assignments in the order of their rank, as many as the engine has free slots.

    ``identity`` returns the engine's ``model@tokenizer_digest``. ``begin`` is called with each run whose claim
    succeeded, ``reject`` with one that makes no sense.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        table: RunTable,
        stepper: StepThread,
        engine_id: Callable[[], str],
        identity: Callable[[], str],
        begin: Callable[[Run], None],
        reject: Callable[[Run, InvalidRequest], None],
    ) -> None:
        self._settings = settings
        self._table = table
        self._stepper = stepper
        self._engine_id = engine_id
        self._identity = identity
        self._begin = begin
        self._reject = reject
        self._functions = FunctionCache()
        self._wake = asyncio.Event()
        self._claimed = asyncio.Event()
        self._claiming: dict[str, list[Control]] = {}
        self._closed = False
        self._ended = False
        self.backlog = Backlog()
        self.capacity = 0
        """Sequences the engine runs at once; 0 until it is loaded."""

    def wake(self) -> None:
        """Look again whether something can be claimed."""
        self._wake.set()

    def take(self, store: EngineStore, assignments: Sequence[Assignment]) -> None:
        """Queue what arrived; what is here already (delivered twice after a lost connection) is ignored."""
        now = monotonic_s()
        for assignment in assignments:
            attempt = sequence_id(assignment.request, assignment.fence)
            if attempt not in self._table and attempt not in self._claiming:
                self.backlog.push(Waiting(store, assignment, Plan.from_json(assignment.plan_json), now))
        self._wake.set()

    def note_early(self, control: Control) -> bool:
        """Keep a message for a request whose claim is under way; False if it is none of those.

        A cancelled request that is not claimed yet is forgotten here.
        """
        attempt = sequence_id(control.request, control.fence)
        if attempt in self._claiming and attempt not in self._table:
            self._claiming[attempt].append(control)
            return True
        if control.kind == "cancel":
            self.backlog.discard(attempt)
        return False

    def early(self, attempt: str) -> list[Control]:
        """Return the messages kept for an attempt while its claim was under way."""
        return self._claiming.get(attempt, [])

    async def run(self) -> None:
        """Claim until ``end``; after ``close``, give back whatever still arrives."""
        while not self._ended:
            await self._wake.wait()
            self._wake.clear()
            if self._closed:
                await self._give_back(self.backlog.clear())
            while not self._closed and (batch := self.backlog.pop(self._room())):
                await self._claim(batch)

    def end(self) -> None:
        """Have ``run`` return."""
        self._closed = self._ended = True
        self._wake.set()

    def shut(self) -> None:
        """Claim nothing more."""
        self._closed = True

    async def close(self) -> None:
        """Claim nothing more; what waits here goes back to the scheduler."""
        self.shut()
        await self._give_back(self.backlog.clear())

    async def quiet(self) -> None:
        """Wait until no claim is under way and no run is left."""
        while self._claiming or len(self._table):
            await self._table.empty()
            if self._claiming:
                self._claimed.clear()
                await self._claimed.wait()

    async def release(self, held: Sequence[tuple[EngineStore, tuple[str, str]]]) -> None:
        """Give requests back to the scheduler, as if they had never been dispatched."""
        by_store: dict[EngineStore, list[tuple[str, str]]] = {}
        for store, pair in held:
            by_store.setdefault(store, []).append(pair)
        for store, pairs in by_store.items():
            await store.release(self._engine_id(), pairs)

    def submit_at_once(self, run: Run) -> bool:
        """Hand ``run`` to the engine if all that its prompt needs is here; False: ``submit`` must fetch the rest.

        Raises ``InvalidRequest`` if the template and the request do not fit together.
        """
        function = self._functions.peek(run.claim.tenant, run.spec.function)
        if function is None or any(value.text is None for value in run.claim.inputs):
            return False
        self._add(run, function, {value.id: value.text or "" for value in run.claim.inputs})
        return True

    async def submit(self, run: Run) -> None:
        """Fetch what the prompt of ``run`` needs and hand it to the engine.

        Raises ``InvalidRequest`` if the template or a value is gone.
        """
        claim, spec = run.claim, run.spec
        function = await self._functions.get(run.store, claim.tenant, spec.function)
        if function is None:
            raise InvalidRequest(
                f"the template {spec.function} of {spec.function_name} is gone from tenant {claim.tenant!r}; "
                "submit the call again"
            )
        texts = await fetch_inputs(run.store, claim)
        if run.in_engine and not run.dropped:
            self._add(run, function, texts)

    def _add(self, run: Run, function: FunctionRecord, texts: dict[str, str]) -> None:
        inputs = {value.id: value for value in run.claim.inputs}
        segments = prompt_segments(run.spec, function, inputs, texts, self._identity())
        self._stepper.add(
            SequenceInput(
                id=run.id,
                segments=segments,
                sampling=run.spec.sampling,
                objective=run.plan.objective,
                rank=run.plan.rank,
                salt=run.claim.tenant,
                forced_ids=run.claim.published_ids,
            )
        )

    def _room(self) -> int:
        free = self.capacity - self._table.num_in_engine
        unwritten = MAX_UNWRITTEN - (len(self._table) - self._table.num_in_engine)
        return max(0, min(free, unwritten, self._settings.claim_batch))

    async def _claim(self, batch: list[Waiting]) -> None:
        """Claim a batch: one call for each partition in it."""
        for waiting in batch:
            self._claiming[waiting.id] = []
        try:
            ordered = sorted(batch, key=lambda waiting: waiting.store.partition.keys.partition)
            for _, group in itertools.groupby(ordered, key=lambda waiting: waiting.store.partition.keys.partition):
                await self._start(list(group))
        finally:
            for waiting in batch:
                del self._claiming[waiting.id]
            self._claimed.set()

    async def _start(self, batch: list[Waiting]) -> None:
        store = batch[0].store
        try:
            claims = await store.start(self._engine_id(), [waiting.assignment for waiting in batch])
        except Fenced as error:
            log.warning("a batch could not be claimed: %s", error)
            return
        except StoreError as error:
            log.warning("a batch could not be claimed, will try again: %s", error)
            await asyncio.sleep(RETRY_S)
            for waiting in batch:
                self.backlog.push(waiting)
            self._wake.set()
            return
        now, late = monotonic_s(), []
        for waiting, claim in zip(batch, claims, strict=True):
            if claim is None:
                log.info("request %s is not ours any more", waiting.assignment.request)
            elif self._closed:
                late.append(waiting)
            else:
                self._accept(waiting, claim, now)
        await self._give_back(late)

    def _accept(self, waiting: Waiting, claim: Claim, now_s: float) -> None:
        plan, store, received_s = waiting.plan, waiting.store, waiting.received_s
        try:
            spec = RequestSpec.from_json(claim.spec_json)
        except (ValueError, KeyError, TypeError, IndexError) as error:  # pydantic's and orjson's are ValueErrors
            problem = InvalidRequest(f"request {claim.request} is malformed: {' '.join(str(error).split())}")
            self._reject(Run(claim, _UNREADABLE, plan, store, received_s, now_s), problem)
            return
        self._begin(Run(claim, spec, plan, store, received_s, now_s))

    async def _give_back(self, batch: Sequence[Waiting]) -> None:
        if not batch:
            return
        try:
            await self.release([(waiting.store, waiting.pair) for waiting in batch])
        except StoreError as error:
            log.warning("%d requests could not be given back, the reaper will: %s", len(batch), error)


_UNREADABLE = RequestSpec("", "", "", "", 0, {}, "", "")
