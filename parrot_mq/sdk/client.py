"""The client: an application's connection to the service."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from types import TracebackType
from typing import Any, Self

from parrot_mq.errors import ConfigError
from parrot_mq.keys import partition_of
from parrot_mq.sdk.link import Link
from parrot_mq.sdk.session import Session
from parrot_mq.sdk.variable import SemanticVariable
from parrot_mq.settings import ClientSettings, StoreSettings
from parrot_mq.store.connect import Store
from parrot_mq.store.connect import connect as connect_store
from parrot_mq.store.server import known_url

DEFAULT_URL = "redis://localhost:6379"


class Client:
    """A connection to the service; made by ``connect``."""

    def __init__(
        self,
        url: str,
        *,
        tenant: str,
        model: str,
        share_prefixes: bool,
        settings: ClientSettings,
        store_settings: StoreSettings | None,
        store: Store | None,
    ) -> None:
        self.url = url
        self._tenant = tenant
        self._model = model
        self._share_prefixes = share_prefixes
        self._settings = settings
        self._store_settings = store_settings
        self._given_store = store
        self._store: Store | None = None
        self._link: Link | None = None
        self._task: asyncio.Task[None] | None = None
        self._delay_s = 0.0

    @property
    def link(self) -> Link:
        """What sessions and variables share; ``ConfigError`` while not connected."""
        if self._link is None:
            raise ConfigError("the client is not connected; write `async with connect(url) as client:`")
        return self._link

    @property
    def store(self) -> Store:
        """The store behind the client."""
        return self.link.store

    async def open(self) -> Self:
        """Connect. Raises ``StoreUnavailable`` if no Redis answers, ``ConfigError`` for a URL that is none."""
        if self._link is None:
            store = self._given_store or await connect_store(self.url, self._store_settings)
            self._store = store
            self._link = Link(store, self._settings)
            self._task = asyncio.create_task(self._link.run(), name="parrot_mq-client")
            await self._link.started()
        return self

    async def aclose(self) -> None:
        """End the client's tasks and connections; submits that are on their way are confirmed first."""
        task, store, link = self._task, self._store, self._link
        self._task = self._store = self._link = None
        try:
            if link is not None and task is not None:
                link.stop()
                await task
        finally:
            if store is not None and store is not self._given_store:
                await store.aclose()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __await__(self) -> Generator[Any, None, Self]:
        return self.open().__await__()

    def session(
        self, *, tenant: str = "", model: str = "", session_id: str = "", share_prefixes: bool | None = None
    ) -> Session:
        """Return a session, to be used with ``async with``: a new one, or the one that has ``session_id``.

        ``tenant``, ``model`` (for functions that name none) and ``share_prefixes`` (see ``connect``) are the client's
        where not given.
        """
        return Session(
            self.link,
            tenant=tenant or self._tenant,
            session_id=session_id,
            model=model or self._model,
            share_prefixes=self._share_prefixes if share_prefixes is None else share_prefixes,
            delay_s=self._delay_s,
        )

    def variable(self, variable_id: str, *, name: str = "") -> SemanticVariable:
        """Return the future of a variable that another process made, by its id.

        Nothing is asked yet: an id that nobody makes within ``want_grace_s`` of the first wait is
        ``UnknownVariable``. Raises ``BadType`` for what is no variable's id.
        """
        self.link.store.partition(partition_of(variable_id, "v"))
        variable = SemanticVariable(name=name)
        variable._id, variable._link = variable_id, self.link
        return variable


def connect(
    url: str = "",
    *,
    tenant: str = "default",
    model: str = "",
    share_prefixes: bool = False,
    settings: ClientSettings | None = None,
    store_settings: StoreSettings | None = None,
    store: Store | None = None,
) -> Client:
    """Return a client of the service whose Redis is at ``url``.

    Else ``PARROT_MQ_REDIS_URL`` says where it is, else it is the private one that runs in this folder (``parrot-mq
    up``), else the one on this machine.

    Use it with ``async with connect(url) as client:``, or ``client = await connect(url)`` and ``client.aclose()``.
    With ``share_prefixes`` engines may use the same computed prompt prefixes for our requests and for those of other
    tenants who said so too: less work, but such a tenant can find out by timing whether a prefix of his prompt has been
    used. ``store`` replaces the connection, and stays open. Settings are read from the environment where not given.
    """
    return Client(
        url=known_url(url) or DEFAULT_URL,
        tenant=tenant,
        model=model,
        share_prefixes=share_prefixes,
        settings=settings or ClientSettings.from_env(),
        store_settings=store_settings,
        store=store,
    )
