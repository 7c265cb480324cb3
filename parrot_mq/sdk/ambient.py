"""The ambient session: the one whose ``async with`` block the program is in."""

from __future__ import annotations

import contextvars
from typing import TYPE_CHECKING

from parrot_mq.errors import ConfigError

if TYPE_CHECKING:
    from parrot_mq.sdk.blocking.session import BlockingSession
    from parrot_mq.sdk.session import Session

_current: contextvars.ContextVar[Session | None] = contextvars.ContextVar("parrot_mq_session", default=None)
_blocking: contextvars.ContextVar[BlockingSession | None] = contextvars.ContextVar("parrot_mq_blocking", default=None)


def ambient_session() -> Session | None:
    """Return the session whose block surrounds the caller, None outside of any."""
    return _current.get()


def set_ambient_session(session: Session | None) -> Session | None:
    """Make ``session`` the ambient one; return the one before."""
    before = _current.get()
    _current.set(session)
    return before


def blocking_session() -> BlockingSession | None:
    """Return the session whose ``with`` block surrounds the caller, a synchronous program; None outside of any."""
    return _blocking.get()


def set_blocking_session(session: BlockingSession | None) -> BlockingSession | None:
    """Make ``session`` the ambient one of synchronous programs; return the one before."""
    before = _blocking.get()
    _blocking.set(session)
    return before


def required_session(what: str) -> Session:
    """Return the ambient session; ``ConfigError`` that names ``what`` needs it and the remedy."""
    session = _current.get()
    if session is None:
        raise ConfigError(
            f"{what} needs a session: use it inside `async with client.session() as session:`, or give one "
            "(session.variable(...), function(..., session=session))"
        )
    return session
