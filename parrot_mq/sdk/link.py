"""A client's way to the store: connections, the tasks that serve it, and what every variable needs of them."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING

from redis.exceptions import ResponseError

from parrot_mq.errors import ConfigError, ParrotError, StoreError
from parrot_mq.keys import by_partition, partition_of
from parrot_mq.messages import Objective, stricter
from parrot_mq.sdk.collect import Collector
from parrot_mq.sdk.failing import fail_collected, not_in_time
from parrot_mq.sdk.graph import Submission
from parrot_mq.sdk.hub import Hub
from parrot_mq.sdk.recovery import resend
from parrot_mq.settings import ClientSettings
from parrot_mq.store.answers import unknown_variable
from parrot_mq.store.codec import encode_value
from parrot_mq.store.connect import Store
from parrot_mq.store.producer import ProducerStore
from parrot_mq.store.reader import Reader
from parrot_mq.store.records import VariableRecord

if TYPE_CHECKING:
    from parrot_mq.sdk.variable import SemanticVariable

MAX_RESENDS = 3
"""How often one wait submits again what Redis has lost."""


class Link:
    """What a client's sessions and variables share. Its tasks run in one group, owned by ``run``."""

    def __init__(self, store: Store, settings: ClientSettings) -> None:
        self.store = store
        self.settings = settings
        self.loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        """Timers run in it, which else would copy one each."""
        self._hubs: dict[int, Hub] = {}
        self._run_ids: dict[int, str] = {}
        self._group: asyncio.TaskGroup | None = None
        self._serving: set[asyncio.Task[None]] = set()
        self._stop = asyncio.Event()
        self._ready = asyncio.Event()

    # Tasks -----------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Own every task of the client until ``stop``; submits that are on their way are still confirmed."""
        error: ParrotError = ConfigError("the client is closed; connect again")
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                self._ready.set()
                await self._stop.wait()
                for hub in self._hubs.values():
                    hub.close(error)
                for task in self._serving:
                    task.cancel()
        except BaseExceptionGroup as problem:
            error = StoreError(f"the client broke: {problem.exceptions[0]!r}")
            raise
        finally:
            self._group = None
            for hub in self._hubs.values():
                hub.close(error)

    async def started(self) -> None:
        """Wait until ``run`` takes tasks."""
        await self._ready.wait()

    def stop(self) -> None:
        """Have ``run`` end."""
        self._stop.set()

    def spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Run ``work`` as a task of the client. Raises ``ConfigError`` once the client is closed."""
        if self._group is None:
            work.close()
            raise ConfigError("the client is closed; connect again")
        return self._group.create_task(work)

    def hub(self, partition: int) -> Hub:
        """Return what waits for variables of a partition."""
        hub = self._hubs.get(partition)
        if hub is None:
            if self._group is None:
                raise ConfigError("the client is closed; connect again")
            hub = self._hubs[partition] = Hub(self.store.partition(partition), self.settings.recheck_s, self.spawn)
            task = self._group.create_task(hub.run(), name=f"parrot_mq-hub-{partition}")
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)
        return hub

    # Where a variable is ---------------------------------------------------------------------------------------------

    def producer(self, object_id: str) -> ProducerStore:
        """Return what changes the partition of an id."""
        return ProducerStore(self.store.of(object_id))

    def reader(self, object_id: str) -> Reader:
        """Return what reads the partition of an id."""
        return Reader(self.store.of(object_id))

    async def run_id(self, number: int, *, anew: bool = False) -> str:
        """Return the id of a partition's Redis server: another one after each restart and fail-over.

        Empty where the server does not tell (INFO is forbidden to this user): restarts are then not noticed.
        """
        if anew or number not in self._run_ids:
            partition = self.store.partition(number)
            try:
                info = await partition.robust(lambda: partition.redis.info("server"))
            except ResponseError:
                info = {}
            self._run_ids[number] = str(info.get("run_id", ""))
        return self._run_ids[number]

    def channel(self, variable: SemanticVariable) -> str:
        """Return the channel on which a variable's changes are told: its session's, or its own for a foreign one."""
        if variable._session is not None:
            return variable._session.channel
        return self.store.of(variable._id).keys.variable_channel(variable._id)

    def _partition(self, variable: SemanticVariable) -> int:
        session = variable._session
        return session.partition_number if session is not None else partition_of(variable._id)

    def grace_s(self, variable: SemanticVariable) -> float:
        """How long Redis may not know a variable: none for our own, for it was confirmed."""
        return 0.0 if variable._session is not None else self.store.settings.want_grace_s

    # What variables need ---------------------------------------------------------------------------------------------

    async def confirm(self, variables: Iterable[SemanticVariable], *, only_made: bool = False) -> None:
        """Send what is unsent, and wait until the submits of ``variables`` are settled; raises their errors.

        ``only_made``: a call that would have produced a variable may have been refused, if the variable is there.
        """
        submissions: dict[Submission, bool] = {}
        for variable in variables:
            for submission in variable._submissions():
                if submission.error is not None or not submission.settled.is_set():
                    needed = not only_made or submission is variable._submission
                    submissions[submission] = needed or submissions.get(submission, False)
            if variable._session is not None:
                variable._session.start()
        for submission, needed in submissions.items():
            await submission.settled.wait()
            if needed:
                submission.report()

    async def resolve(
        self, variables: Sequence[SemanticVariable], perf: Objective | None, timeout_s: float | None
    ) -> list[str]:
        """Wait for the values of ``variables``; raises at the first that failed."""
        await self.wait(Collector(variables, perf), timeout_s)
        return [variable._known() for variable in variables]

    async def wait(self, collector: Collector, timeout_s: float | None) -> None:
        """Wait until ``collector`` has what it wants; raises ``StepError`` for what failed or is not there in time."""
        timeout_s = self.settings.get_timeout_s if timeout_s is None else timeout_s
        deadline = self.loop.time() + timeout_s
        expiry = self.loop.call_at(deadline, collector.expire, context=self._context)
        try:
            for variable in collector.variables:
                variable._wanted = stricter(variable._wanted, collector.perf)
                self._watch(variable, collector)
            await collector.enough()
            collector.check()
            for _ in range(MAX_RESENDS):
                if not collector.unknown:
                    break
                unknown = collector.take_unknown()
                async with asyncio.timeout_at(deadline):
                    await self.restore(unknown)
                for variable in unknown:
                    self._watch(variable, collector)
                await collector.enough()
                collector.check()
        except TimeoutError:
            raise await not_in_time(self, collector, timeout_s) from None
        finally:
            expiry.cancel()
            collector.is_over = True
            for variable in collector.left():
                if (hub := self._hubs.get(self._partition(variable))) is not None:
                    hub.forget(variable._id, collector)
        if collector.unknown:
            raise unknown_variable(collector.unknown[0]._id)
        await fail_collected(self, collector)

    def _watch(self, variable: SemanticVariable, collector: Collector) -> None:
        """Have ``collector`` told of what becomes of ``variable``, once its submits are confirmed."""
        submission = variable._open_submission()
        if submission is None:
            if not variable._is_settled:
                hub, news = self.hub(self._partition(variable)), news_of(variable._stated, collector.perf)
                hub.wait(variable._id, self.channel(variable), self.grace_s(variable), news, collector)
        elif submission.error is not None:
            submission.is_reported = True
            collector.fail(submission.error)
        else:
            submission.hold(variable, collector)
            if submission is variable._submission and not submission.is_sent and not variable._is_settled:
                self.hub(self._partition(variable)).expect(variable._id, self.channel(variable), collector)
            if variable._session is not None:
                variable._session.start()

    def submitted(self, variable: SemanticVariable, submission: Submission, collector: Collector) -> None:
        """Go on with a wait for ``variable`` that ``submission`` held up (called by the submission)."""
        is_told = False
        if submission is variable._submission and (hub := self._hubs.get(self._partition(variable))) is not None:
            is_confirmed = submission.error is None
            is_told = hub.made(variable._id, self.channel(variable), is_confirmed and submission.is_watched)
        if collector.is_over:
            return
        if not is_told or news_of(variable._stated, collector.perf) or variable._open_submission() is not None:
            self._watch(variable, collector)
        collector.submitted()

    async def restore(self, variables: Sequence[SemanticVariable]) -> None:
        """Submit again what Redis lost; raises ``UnknownVariable`` for what is not ours to submit."""
        for variable in variables:
            if variable._session is None:
                raise unknown_variable(variable._id)
        await resend(self, variables)

    async def record(self, variable: SemanticVariable) -> VariableRecord:
        """Return a variable as Redis has it (large values left out); raises ``UnknownVariable``."""
        await self.confirm([variable], only_made=True)
        (record,) = await self.reader(variable._id).variables([variable._id], values=False)
        if record is None:
            raise unknown_variable(variable._id)
        return record

    async def set_variable(self, variable: SemanticVariable, text: str) -> None:
        """Give a variable its value."""
        value = encode_value(text, self.store.settings, self.store.ids.token())
        await self.confirm([variable], only_made=True)
        await self.producer(variable._id).set_variable(variable._id, value)
        variable._given, variable._text, variable._request = value, text, None

    async def cancel(self, variables: Sequence[SemanticVariable], reason: str) -> int:
        """Cancel the producers of variables; returns how many requests or variables that ended."""
        await self.confirm(variables, only_made=True)
        count = 0
        for ids in by_partition(variable._id for variable in variables):
            count += await self.producer(ids[0]).cancel_requests(ids, reason)
        return count


def news_of(stated: Objective | None, asked: Objective | None) -> Objective | None:
    """Return ``asked`` if it is stricter than what was ``stated``, else None."""
    return asked if asked is not stated and stricter(stated, asked) is not stated else None
