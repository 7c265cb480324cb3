"""What happens to a request from its beginning to its outcome."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from parrot_mq.errors import EngineFailed, InvalidRequest, StepError, StoreError
from parrot_mq.settings import StoreSettings, WorkerSettings
from parrot_mq.store.engine import EngineStore
from parrot_mq.store.records import Assignment, Claim, Control
from parrot_workers.engine.port import SequenceOutput
from parrot_workers.worker.claimer import Claimer
from parrot_workers.worker.delivery import Delivery
from parrot_workers.worker.flights import Flights
from parrot_workers.worker.hints import KINDS as HINT_KINDS
from parrot_workers.worker.hints import HintTaker
from parrot_workers.worker.plan import control_objective
from parrot_workers.worker.run import Leases, Run
from parrot_workers.worker.stepper import Stepper
from parrot_workers.worker.streamed_prefill import StreamedPrefills
from parrot_workers.worker.submitter import Submitter
from parrot_workers.worker.table import RunTable
from parrot_workers.worker.vitals import Vitals

log = logging.getLogger(__name__)


class Runner:
    """The runs of one engine and all that may happen to them. Its tasks belong to ``group``."""

    def __init__(
        self,
        group: asyncio.TaskGroup,
        store: StoreSettings,
        worker: WorkerSettings,
        leases: Leases,
        stepper: Stepper,
        vitals: Vitals,
    ) -> None:
        self._group = group
        self._vitals = vitals
        self.table = RunTable(leases)
        self.flights = Flights(stepper, is_on=worker.single_flight)
        self.delivery = Delivery(group, store, worker, lambda: vitals.engine_id, self.drop)
        self.claimer = Claimer(
            worker,
            self.table,
            self.flights,
            lambda: vitals.engine_id,
            self._begin,
            self._confirm,
            self.drop,
            self._reject,
        )
        self._submitter = Submitter(self.flights, lambda: self.delivery.identity)
        self.streamed = StreamedPrefills(
            stepper, self.table, lambda: vitals.engine_id, lambda: vitals.model, lambda: self.delivery.identity
        )
        self._hints = HintTaker(
            group, stepper, self.streamed, self._submitter.functions, lambda: self.delivery.identity
        )

    def receive(self, store: EngineStore, assignments: Sequence[Assignment], controls: Sequence[Control]) -> None:
        """Take what arrived in one partition."""
        self.claimer.take(store, assignments)
        for control in controls:
            if control.kind in HINT_KINDS:
                self._hints.obey(store, control)
            elif not self.claimer.note_early(control):
                self._obey(control)

    def advance(self, output: SequenceOutput) -> None:
        """Take what a step did for a sequence. Those that nobody wants any more are unknown here."""
        self.streamed.advance(output)
        for run in self.flights.advance(output):
            if len(run.transcript.pieces) == 1:
                self._vitals.note_prefix(run.plan.prefix)
            if run.streamed:
                self.delivery.note(run)
            if output.finish is not None:
                run.outcome = output
                self.table.leave_engine(run)
                self.claimer.wake()
                self._group.create_task(self._finish(run, output))
            self.streamed.note(run.spec.output)

    def drop(self, run: Run, reason: str) -> None:
        """Stop acting on a run that is not ours (any more): nothing of it is written from now on."""
        if not run.dropped:
            log.info("request %s is dropped: %s", run.claim.request, reason)
            run.dropped = True
            self.flights.leave(run)
            self._forget(run)

    def lose(self, pairs: Sequence[tuple[str, str]], reason: str) -> None:
        """Drop the runs of (request, fence) pairs whose lease is lost."""
        for request, fence in pairs:
            run = self.table.of_request(request)
            if run is not None and run.claim.fence == fence and run.in_engine:
                self.drop(run, reason)

    def drop_all(self, reason: str) -> None:
        """Drop every run, and forget what waits."""
        for run in self.table:
            self.drop(run, reason)
        self.claimer.backlog.clear()

    def fail_all(self, error: EngineFailed) -> None:
        """The engine is no more: have all that it ran tried elsewhere, and claim nothing more."""
        self.claimer.shut()
        for run in self.table:
            if run.in_engine:
                self._group.create_task(self._fail(run, error, retry=True))

    async def give_back_running(self, reason: str) -> None:
        """Take what still runs out of the engine and give it back, as if it had never been dispatched."""
        left = [run for run in self.table if run.in_engine]
        for run in left:
            self.drop(run, f"{reason}, it is given back")
        await self.claimer.release([(run.store, run.pair) for run in left])

    def _obey(self, control: Control) -> None:
        run = self.table.of_request(control.request)
        if run is None or control.fence not in ("", run.claim.fence):
            return
        if control.kind == "cancel":
            self.drop(run, "it was cancelled")
        elif control.kind == "stream":
            self._stream(run)
        elif control.kind == "objective":
            self.flights.set_objective(run, control_objective(control.text))
        elif control.kind != "drain":
            log.warning("control message of unknown kind %r ignored", control.kind)

    def _begin(self, run: Run) -> None:
        """A request has been claimed, or is being claimed."""
        stale = self.table.of_request(run.claim.request)
        if stale is not None:
            self.drop(stale, "another attempt of it came to the same engine")
        self.table.add(run)
        self.streamed.note(run.spec.output)
        if run.claim.streamed:
            self._stream(run)
        for control in self.claimer.early(run.id):
            self._obey(control)
        if run.dropped:
            return
        try:
            if not self._submitter.submit_at_once(run):
                self._group.create_task(self._submit(run))
        except InvalidRequest as error:
            self._group.create_task(self._fail(run, error, retry=False))

    def _confirm(self, run: Run, claim: Claim) -> None:
        """The claim of a run that had begun was answered."""
        run.claim = claim
        self.table.hold(run)
        if claim.streamed and not run.dropped:
            self._stream(run)

    def _reject(self, run: Run, error: InvalidRequest) -> None:
        """A request that cannot even be read."""
        self.table.add(run)
        self._group.create_task(self._fail(run, error, retry=False))

    async def _submit(self, run: Run) -> None:
        try:
            await self._submitter.submit(run)
            self.claimer.wake()  # it may have joined another one, and left its slot
        except InvalidRequest as error:
            await self._fail(run, error, retry=False)
        except StoreError as error:
            await self._fail(run, EngineFailed(f"the inputs of {run.spec.id} could not be read: {error}"), retry=True)

    def _stream(self, run: Run) -> None:
        if not run.streamed:
            run.streamed = True
            self.delivery.stream(run)

    async def _finish(self, run: Run, output: SequenceOutput) -> None:
        await self.delivery.finish(run, output)
        self._forget(run)

    async def _fail(self, run: Run, error: StepError, *, retry: bool) -> None:
        self.flights.leave(run)
        self.table.leave_engine(run)
        await self.delivery.fail(run, error, retry=retry)
        self._forget(run)

    def _forget(self, run: Run) -> None:
        self.table.remove(run)
        self.streamed.note(run.spec.output)
        self.claimer.wake()
