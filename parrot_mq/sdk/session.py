"""Sessions: where an application's variables and requests live."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from redis.exceptions import RedisError

from parrot_mq.errors import ConfigError, ParrotError, StoreError, UnknownSession
from parrot_mq.keys import make_id, partition_of, session_partition
from parrot_mq.sdk.ambient import set_ambient_session
from parrot_mq.sdk.graph import Request, Submission
from parrot_mq.sdk.outbox import Outbox
from parrot_mq.sdk.submit import Sender
from parrot_mq.sdk.variable import SemanticVariable
from parrot_mq.store.codec import encode_value
from parrot_mq.store.producer import ProducerStore
from parrot_mq.store.records import Value

if TYPE_CHECKING:
    from parrot_mq.sdk.link import Link


class Session:
    """A session of a tenant. Made by ``client.session()``, used as an asynchronous context manager.

    Inside the block it is the ambient session. Leaving the block waits until all that was called is confirmed, then
    lets go: what runs goes on, and variables can still be read. Calls made between two awaits go out together.
    """

    def __init__(
        self, link: Link, *, tenant: str, session_id: str, model: str, share_prefixes: bool, delay_s: float
    ) -> None:
        token = link.store.ids.token()
        partition = session_partition(token, len(link.store.partitions))
        self.id = session_id or make_id(partition, "s", token)
        self.tenant = tenant
        self.model = model
        self.share_prefixes = share_prefixes
        self.link = link
        self.partition_number = partition_of(self.id, "s")
        self._producer = ProducerStore(link.store.partition(self.partition_number))
        self.channel = self._producer.partition.keys.session_channel(self.id)
        settings = link.settings
        self._sender = Sender(self._producer, link.store.ids.token, settings.submit_chunk, settings.submit_timeout_s)
        self._outbox = Outbox(self._send, link.spawn, link.loop, delay_s)
        self._is_open = False
        self._run_id = ""
        self._is_attached = False
        self._before: Session | None = None

    def __repr__(self) -> str:
        return f"<Session {self.id} of tenant {self.tenant!r}>"

    # Life ------------------------------------------------------------------------------------------------------------

    async def open(self) -> Self:
        """Make the session in Redis if it is not there. ``Conflict`` if the id is another tenant's."""
        await self._ensure()
        if not self._is_attached:
            self._is_attached = True
            self.link.hub(self.partition_number).acquire(self.channel)
        return self

    async def __aenter__(self) -> Self:
        await self.open()
        self._before = set_ambient_session(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        set_ambient_session(self._before)
        self._before = None
        try:
            await self.detach()
        except ParrotError as problem:
            if error is None:
                raise
            error.add_note(f"the session's last submit failed as well: {problem}")

    async def detach(self) -> None:
        """Wait until all that was called is confirmed, and let go of the session; it goes on without us.

        Raises the error of a submit that the application has not seen yet.
        """
        try:
            await self.flush()
        finally:
            if self._is_attached:
                self._is_attached = False
                self.link.hub(self.partition_number).release(self.channel)

    async def close(self) -> None:
        """Flush, then let the session take no more work; what is submitted goes on."""
        await self.flush()
        await self._producer.close_session(self.id)

    async def flush(self) -> None:
        """Send what was called and wait until Redis has confirmed it; raises the error of a submit that was refused."""
        await self._outbox.flush()

    async def cancel(self, reason: str = "session cancelled by the application") -> int:
        """Close the session and cancel all that is not finished in it; returns how many requests that were."""
        await self.flush()
        return await self._producer.cancel_session(self.id, "Cancelled", reason)

    async def delete(self) -> None:
        """Cancel what is not finished, and delete the session with all its variables."""
        await self.flush()
        await self._producer.delete_session(self.id)
        self._is_open = False

    # Variables -------------------------------------------------------------------------------------------------------

    def variable(self, value: str | None = None, *, name: str = "") -> SemanticVariable:
        """Make a variable: with a value, or to be set later, or to be given to a call as its output.

        Raises ``BadType`` for what is no text, ``ValueTooLarge``.
        """
        variable = self.fresh(name, value, self.token())
        self.take([variable], [])
        return variable

    async def variables(self) -> dict[str, SemanticVariable]:
        """Return every variable of the session that Redis has, by id; those of other processes as well."""
        await self.flush()
        reader = self.link.reader(self.id)
        ids = [i for i in await reader.session_ids(self.id) if "-v-" in i]
        found = {}
        for record in await reader.variables(ids, values=False):
            if record is not None:
                variable = SemanticVariable(name=record.name)
                variable._id, variable._link = record.id, self.link
                found[record.id] = variable
        return found

    def adopt(self, variable: SemanticVariable) -> None:
        """Bind an unbound variable to this session."""
        if variable._link is not None:
            raise ConfigError(f"{variable!r} is bound already")
        self._outbox.check_thread()
        value = self.encode(variable._text, self.token()) if variable._text is not None else None
        self._bind(variable, self.token(), value)
        self.take([variable], [])

    # For calls -------------------------------------------------------------------------------------------------------

    @property
    def open_submission(self) -> Submission:
        """The submission that what is called now goes out with."""
        return self._outbox.open

    def token(self) -> str:
        """Return a new random token."""
        return self.link.store.ids.token()

    def object_id(self, kind: str, token: str) -> str:
        """Return an id in the session's partition."""
        return f"{self.partition_number}-{kind}-{token}"

    def encode(self, text: str, token: str) -> Value:
        """Return ``text`` ready to be stored. Raises ``BadType``, ``ValueTooLarge``."""
        return encode_value(text, self.link.store.settings, token)

    def fresh(self, name: str, text: str | None, token: str) -> SemanticVariable:
        """Return a variable that is bound but not yet on its way (``take``)."""
        variable = SemanticVariable(text, name=name)
        self._bind(variable, token, self.encode(text, token) if text is not None else None)
        return variable

    def take(self, variables: Sequence[SemanticVariable], requests: Sequence[Request]) -> None:
        """Put new variables and requests on their way."""
        outbox = self._outbox
        outbox.add(variables, requests)
        for variable in variables:
            variable._submission = outbox.open
        for request in requests:
            for used in request.inputs:
                if used._session is not self and used._session is not None:
                    for submission in used._submissions():
                        outbox.depend_on(used._session._outbox, submission)

    def start(self) -> None:
        """Send what was called without waiting for the loop's next turn."""
        self._outbox.start()

    async def cancel_requests(self, request_ids: Sequence[str], reason: str) -> int:
        """Cancel requests of the session."""
        await self.flush()
        return await self._producer.cancel_requests(request_ids, reason)

    async def restore(self, variables: Sequence[SemanticVariable], requests: Sequence[Request]) -> None:
        """Submit again, under their ids, what a Redis that lost its last second does not know any more.

        A session that is gone although Redis was not restarted has ended: ``UnknownSession``.
        """
        if await self.link.reader(self.id).session(self.id) is None:
            if await self.link.run_id(self.partition_number, anew=True) == self._run_id:
                raise UnknownSession(f"session {self.id} has expired or was deleted; open a new one", self.id)
            self._is_open = False
            await self._ensure()
        await self._sender.send(self.id, variables, requests)

    # Inside ----------------------------------------------------------------------------------------------------------

    async def _ensure(self) -> None:
        if not self._is_open:
            await self._producer.open_session(self.id, self.tenant)
            self._run_id = await self.link.run_id(self.partition_number)
            self._is_open = True

    def _bind(self, variable: SemanticVariable, token: str, value: Value | None) -> None:
        variable._id = f"{self.partition_number}-v-{token}"
        variable._link, variable._session, variable._given = self.link, self, value

    async def _send(self, submission: Submission) -> None:
        try:
            for other in submission.after:
                await other.settled.wait()
            for request in submission.requests:
                for used in request.inputs:
                    if used._submission is not submission and (refused := used._refused()) is not None:
                        raise refused
            await self._ensure()
            submission.send(self.link.hub(self.partition_number).is_subscribed(self.channel))
            await self._sender.send(self.id, submission.variables, submission.requests)
        except RedisError as error:
            raise StoreError(f"Redis refused the submit: {error}") from error
