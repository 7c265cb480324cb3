"""From assignments to runs: what waits is taken when the engine has room, and claimed.

An assignment that offers what its claim will be is begun at once, while the claim is under way: the engine computes,
and pieces and failures are written once the claim is answered (``Run.answered``), a result even before: it is a claim
as well. The others begin with the answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from parrot_mq.errors import Fenced, InvalidRequest, StoreError
from parrot_mq.messages import RequestSpec
from parrot_mq.settings import WorkerSettings
from parrot_mq.store.engine import EngineStore
from parrot_mq.store.records import Assignment, Claim, Control
from parrot_workers.worker.admitted import Admitted
from parrot_workers.worker.backlog import Backlog, Waiting
from parrot_workers.worker.flights import MAX_FOLLOWERS, Flights
from parrot_workers.worker.plan import Plan
from parrot_workers.worker.run import Run, sequence_id
from parrot_workers.worker.stepper import monotonic_s
from parrot_workers.worker.table import RunTable

log = logging.getLogger(__name__)

MAX_UNWRITTEN = 1024
"""Outcomes that may wait for Redis before no more is claimed."""
RETRY_S = 0.2


class Claimer:
    """Claims assignments in the order of their rank, as many as the engine has free slots.

    ``begin`` is called with each run, before or after its claim, and ``confirm`` when the claim of one that was begun
    before succeeds; ``drop`` if it fails, with the reason; ``reject`` with a run that makes no sense.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        table: RunTable,
        flights: Flights,
        engine_id: Callable[[], str],
        begin: Callable[[Run], None],
        confirm: Callable[[Run, Claim], None],
        drop: Callable[[Run, str], None],
        reject: Callable[[Run, InvalidRequest], None],
    ) -> None:
        self._settings = settings
        self._table = table
        self._flights = flights
        self._engine_id = engine_id
        self._begin = begin
        self._confirm = confirm
        self._drop = drop
        self._reject = reject
        self._wake = asyncio.Event()
        self._claimed = asyncio.Event()
        self._admitted: list[Admitted] = []
        """What is to be claimed next."""
        self._claiming: dict[str, Admitted] = {}
        """What was admitted and whose claim is not answered, by attempt."""
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
        self._admit()
        self._wake.set()

    def note_early(self, control: Control) -> bool:
        """Keep a message for a request whose claim is under way; False if it is none of those.

        A cancelled request that is not claimed yet is forgotten here.
        """
        attempt = sequence_id(control.request, control.fence)
        if attempt in self._claiming and attempt not in self._table:
            self._claiming[attempt].controls.append(control)
            return True
        if control.kind == "cancel":
            self.backlog.discard(attempt)
        return False

    def early(self, attempt: str) -> list[Control]:
        """Return the messages kept for an attempt while its claim was under way."""
        admitted = self._claiming.get(attempt)
        return admitted.controls if admitted is not None else []

    async def run(self) -> None:
        """Claim until ``end``; after ``close``, give back whatever still arrives."""
        try:
            while not self._ended:
                await self._wake.wait()
                self._wake.clear()
                await self._claim_admitted()
        finally:
            for admitted in self._claiming.values():
                admitted.answered()

    async def _claim_admitted(self) -> None:
        size = self._settings.claim_batch
        while not self._ended:
            if self._closed:
                await self._give_back(self._unbegun())
            else:
                self._admit()
            batch, self._admitted = self._admitted[:size], self._admitted[size:]
            if not batch:
                return
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
        await self._give_back(self._unbegun())

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

    def _room(self) -> int:
        num_unbegun = sum(admitted.run is None for admitted in self._claiming.values())
        free = self.capacity - (self._table.num_in_engine - self._flights.num_followers) - num_unbegun
        return max(0, min(free, self._unwritten_room()))

    def _unwritten_room(self) -> int:
        return MAX_UNWRITTEN - (len(self._table) - self._table.num_in_engine)

    def _admit(self) -> None:
        """Give the engine's free slots to what waits, and begin what can begin without its claim.

        What is equal to something that has a slot needs none: it is admitted to a full engine too.
        """
        while not self._closed and (batch := self.backlog.pop(self._room())):
            for waiting in batch:
                self._admit_one(waiting)
        if not self._closed and self.backlog.num_in_flights:
            for waiting in self.backlog.pop_flights(self._flying(), self._follower_room()):
                self._admit_one(waiting)

    def _admit_one(self, waiting: Waiting) -> None:
        admitted = self._claiming[waiting.id] = Admitted(waiting)
        self._admitted.append(admitted)
        if (offer := waiting.assignment.offer) is not None:
            admitted.run = self._begun(waiting, offer, asyncio.get_running_loop().create_future())

    def _flying(self) -> set[str | None]:
        """Return the digests of the flights that have begun, or are about to."""
        digests = {admitted.waiting.plan.flight for admitted in self._claiming.values()}
        return digests | {run.plan.flight for run in self._table if run.in_engine}

    def _follower_room(self) -> int:
        num_unbegun = sum(admitted.run is None for admitted in self._claiming.values())
        return max(0, min(MAX_FOLLOWERS - self._flights.num_followers - num_unbegun, self._unwritten_room()))

    def _unbegun(self) -> list[Waiting]:
        """Take out what waits, and what was admitted without having begun."""
        unbegun = [admitted for admitted in self._admitted if admitted.run is None]
        self._admitted = [admitted for admitted in self._admitted if admitted.run is not None]
        for admitted in unbegun:
            del self._claiming[admitted.waiting.id]
        return [*self.backlog.clear(), *(admitted.waiting for admitted in unbegun)]

    async def _claim(self, batch: list[Admitted]) -> None:
        """Claim a batch: one call for each partition in it."""
        by_store: dict[EngineStore, list[Admitted]] = {}
        for admitted in batch:
            by_store.setdefault(admitted.waiting.store, []).append(admitted)
        for store, group in by_store.items():
            if await self._start(store, group):
                for admitted in group:
                    admitted.answered()
                    del self._claiming[admitted.waiting.id]
                self._claimed.set()

    async def _start(self, store: EngineStore, batch: list[Admitted]) -> bool:
        """Claim what belongs to one partition; False: it is to be tried again, and what has begun goes on."""
        try:
            claims = await store.start(self._engine_id(), [admitted.waiting.assignment for admitted in batch])
        except Fenced as error:
            log.warning("a batch could not be claimed: %s", error)
            for admitted in batch:
                if admitted.run is not None:
                    self._drop(admitted.run, f"it could not be claimed: {error}")
            return True
        except StoreError as error:
            log.warning("a batch could not be claimed, will try again: %s", error)
            await asyncio.sleep(RETRY_S)
            self._admitted = [*batch, *self._admitted]
            return False
        late = []
        for admitted, claim in zip(batch, claims, strict=True):
            waiting, run = admitted.waiting, admitted.run
            if claim is None:
                if run is None:
                    log.info("request %s is not ours any more", waiting.assignment.request)
                elif run.in_engine:  # else its outcome is on the way, or there: that was the claim
                    self._drop(run, "it is not ours any more")
            elif run is not None:
                self._confirm(run, claim)
            elif self._closed:
                late.append(waiting)
            else:
                self._begun(waiting, claim, None)
        await self._give_back(late)
        return True

    def _begun(self, waiting: Waiting, claim: Claim, answered: asyncio.Future[None] | None) -> Run:
        """Begin to run a claim, or (with ``answered``) what it will be."""
        problem, spec = None, _UNREADABLE
        try:
            spec = RequestSpec.from_json(claim.spec_json)
        except (ValueError, KeyError, TypeError, IndexError) as error:  # pydantic's and orjson's are ValueErrors
            problem = InvalidRequest(f"request {claim.request} is malformed: {' '.join(str(error).split())}")
        run = Run(claim, spec, waiting.plan, waiting.store, waiting.received_s, monotonic_s(), answered)
        if problem is None:
            self._begin(run)
        else:
            self._reject(run, problem)
        return run

    async def _give_back(self, batch: Sequence[Waiting]) -> None:
        if not batch:
            return
        try:
            await self.release([(waiting.store, waiting.pair) for waiting in batch])
        except StoreError as error:
            log.warning("%d requests could not be given back, the reaper will: %s", len(batch), error)


_UNREADABLE = RequestSpec("", "", "", "", 0, {}, "", "")
