"""A runner for whole programs, as the reference system's VirtualMachine."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar, overload

from parrot_mq.sdk.blocking.session import BlockingSession
from parrot_mq.sdk.blocking.session import connect as connect_blocking
from parrot_mq.sdk.client import connect
from parrot_mq.settings import ClientSettings, StoreSettings

T = TypeVar("T")


class VirtualMachine:
    """Runs programs, asynchronous or synchronous, each in a session of its own.

    ``vm.run(program)`` connects, opens a session that surrounds the program, and returns what the program returns. In
    a synchronous program semantic functions return variables whose methods block (those of ``parrot_mq.sync``).
    """

    def __init__(
        self,
        url: str = "",
        *,
        tenant: str = "default",
        model: str = "",
        settings: ClientSettings | None = None,
        store_settings: StoreSettings | None = None,
    ) -> None:
        self._url = url
        self._tenant = tenant
        self._model = model
        self._settings = settings
        self._store_settings = store_settings

    @overload
    def run(self, program: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T: ...
    @overload
    def run(self, program: Callable[..., T], *args: Any) -> T: ...
    def run(self, program: Callable[..., Any], *args: Any) -> Any:
        """Run ``program(*args)`` and return its result; raises what it raises.

        An asynchronous program must not be run from inside an event loop; await it there.
        """
        if inspect.iscoroutinefunction(program):
            return asyncio.run(self._run(program, args))
        with self.running_scope():
            return program(*args)

    @contextlib.contextmanager
    def running_scope(self) -> Iterator[BlockingSession]:
        """Connect and open a session for the synchronous code of a ``with`` block."""
        client = connect_blocking(
            self._url,
            tenant=self._tenant,
            model=self._model,
            settings=self._settings,
            store_settings=self._store_settings,
        )
        with client, client.session() as session:
            yield session

    async def _run(self, program: Callable[..., Coroutine[Any, Any, T]], args: tuple[Any, ...]) -> T:
        client = connect(
            self._url,
            tenant=self._tenant,
            model=self._model,
            settings=self._settings,
            store_settings=self._store_settings,
        )
        async with client, client.session():
            return await program(*args)
