"""Clients and sessions whose methods block."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from parrot_mq.errors import ConfigError
from parrot_mq.sdk.ambient import set_blocking_session
from parrot_mq.sdk.blocking.portal import Portal
from parrot_mq.sdk.blocking.variable import BlockingVariable, unwrapped, wrapped
from parrot_mq.sdk.client import Client
from parrot_mq.sdk.client import connect as connect_async
from parrot_mq.sdk.session import Session
from parrot_mq.settings import ClientSettings, StoreSettings

if TYPE_CHECKING:
    from parrot_mq.sdk.function import SemanticFunction

BATCH_DELAY_S = 0.001
"""Calls of a synchronous program that follow one another this closely go out together."""


class BlockingSession:
    """A session for synchronous programs: as ``parrot_mq.Session``, used with ``with``."""

    def __init__(self, inner: Session, portal: Portal) -> None:
        self.inner = inner
        self.portal = portal
        self._before: BlockingSession | None = None

    @property
    def id(self) -> str:
        """Its id."""
        return self.inner.id

    @property
    def tenant(self) -> str:
        """The tenant that it belongs to."""
        return self.inner.tenant

    def __enter__(self) -> Self:
        self.portal.run(self.inner.open())
        self._before = set_blocking_session(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        set_blocking_session(self._before)
        self._before = None
        self.portal.run(self.inner.__aexit__(kind, error, trace))

    def variable(self, value: str | None = None, *, name: str = "") -> BlockingVariable:
        """Make a variable; as ``parrot_mq.Session.variable``."""
        return BlockingVariable.wrap(self.portal.call(lambda: self.inner.variable(value, name=name)), self.portal)

    def variables(self) -> dict[str, BlockingVariable]:
        """Return every variable of the session that Redis has, by id."""
        found = self.portal.run(self.inner.variables())
        return {variable_id: BlockingVariable.wrap(inner, self.portal) for variable_id, inner in found.items()}

    def flush(self) -> None:
        """Send what was called and wait until Redis has confirmed it."""
        self.portal.run(self.inner.flush())

    def close(self) -> None:
        """Flush, then let the session take no more work; what is submitted goes on."""
        self.portal.run(self.inner.close())

    def cancel(self, reason: str = "session cancelled by the application") -> int:
        """Close the session and cancel all that is not finished in it; returns how many requests that were."""
        return self.portal.run(self.inner.cancel(reason))

    def delete(self) -> None:
        """Cancel what is not finished, and delete the session with all its variables."""
        self.portal.run(self.inner.delete())

    def call(self, function: SemanticFunction[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Call a semantic function in this session; its outputs are blocking variables."""
        session = kwargs.get("session")
        if isinstance(session, BlockingSession) and session is not self:
            return session.call(function, args, {**kwargs, "session": session.inner})
        given = {name: unwrapped(value) for name, value in kwargs.items()}
        if session is None or session is self:
            given["session"] = self.inner
        positional = tuple(unwrapped(value) for value in args)
        outputs = self.portal.call(lambda: function.submit(positional, given))
        return function.shaped(tuple(wrapped(output, self.portal) for output in outputs))


class BlockingClient:
    """A connection to the service for synchronous programs: as ``parrot_mq.Client``, used with ``with``."""

    def __init__(self, make: Client) -> None:
        self._client = make
        self._client._delay_s = BATCH_DELAY_S
        self._portal: Portal | None = None

    @property
    def portal(self) -> Portal:
        """The loop that it runs on; ``ConfigError`` while not connected."""
        if self._portal is None:
            raise ConfigError("the client is not connected; write `with connect(url) as client:`")
        return self._portal

    def open(self) -> Self:
        """Connect. Raises ``StoreUnavailable`` if no Redis answers."""
        if self._portal is None:
            portal = Portal()
            try:
                portal.run(self._client.open())
            except BaseException:
                portal.close()
                raise
            self._portal = portal
        return self

    def close(self) -> None:
        """Confirm what was submitted, and end the connections and the thread."""
        if self._portal is not None:
            portal, self._portal = self._portal, None
            try:
                portal.run(self._client.aclose())
            finally:
                portal.close()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def session(
        self, *, tenant: str = "", model: str = "", session_id: str = "", share_prefixes: bool | None = None
    ) -> BlockingSession:
        """Return a session, to be used with ``with``; as ``parrot_mq.Client.session``."""
        make = self._client.session
        inner = self.portal.call(
            lambda: make(tenant=tenant, model=model, session_id=session_id, share_prefixes=share_prefixes)
        )
        return BlockingSession(inner, self.portal)

    def variable(self, variable_id: str, *, name: str = "") -> BlockingVariable:
        """Return the future of a variable that another process made, by its id."""
        return BlockingVariable.wrap(self._client.variable(variable_id, name=name), self.portal)


def connect(
    url: str = "",
    *,
    tenant: str = "default",
    model: str = "",
    share_prefixes: bool = False,
    settings: ClientSettings | None = None,
    store_settings: StoreSettings | None = None,
) -> BlockingClient:
    """Return a client for synchronous programs: ``with connect(url) as client:``; as ``parrot_mq.connect``."""
    return BlockingClient(
        connect_async(
            url,
            tenant=tenant,
            model=model,
            share_prefixes=share_prefixes,
            settings=settings,
            store_settings=store_settings,
        )
    )
