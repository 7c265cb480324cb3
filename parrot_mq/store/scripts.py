"""The Lua scripts: one per state change, each a prelude, the deployment's constants and its own text."""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
from collections.abc import Mapping

from parrot_mq.keys import GROUP
from parrot_mq.settings import StoreSettings

PARTS: Mapping[str, tuple[str, ...]] = {
    "cancel": ("graph", "cancel"),
    "close_session": ("close_session",),
    "complete": ("graph", "inputs", "queue", "lane", "complete"),
    "control": ("control",),
    "delete_ids": ("graph", "delete_ids"),
    "discard": ("graph", "discard"),
    "dispatch": ("inputs", "queue", "dispatch"),
    "emit": ("emit",),
    "expired_sessions": ("expired_sessions",),
    "fail": ("graph", "fail"),
    "grant": ("grant",),
    "heartbeat": ("heartbeat",),
    "import_variable": ("import_variable",),
    "learn": ("learn",),
    "leave": ("leave",),
    "open_session": ("open_session",),
    "propagate": ("graph", "propagate"),
    "raise_epoch": ("raise_epoch",),
    "read": ("read",),
    "reap": ("graph", "reap"),
    "reap_engine": ("graph", "reap_engine"),
    "reject": ("graph", "reject"),
    "release": ("graph", "release"),
    "relayed": ("relayed",),
    "renew": ("renew",),
    "set_variable": ("graph", "inputs", "queue", "lane", "set_variable"),
    "start": ("graph", "inputs", "start"),
    "streams": ("streams",),
    "submit": ("graph", "inputs", "queue", "lane", "objective", "submit_validation", "submit"),
    "want": ("objective", "want"),
    "why": ("why",),
}
"""Every script with the files it is made of, after the prelude (each function costs time in every call)."""
NAMES = tuple(PARTS)
MAX_OFFER_INPUTS = 16
"""A request with more inputs is not offered with its queue entry."""


def _constants(settings: StoreSettings) -> str:
    values = {
        "LEASE_MS": settings.lease_s * 1000,
        "MAX_ATTEMPTS": settings.max_attempts,
        "MAX_UNDISPATCHES": settings.max_undispatches,
        "MAX_LIVE": settings.max_live_requests,
        "MAX_SESSION_LIVE": settings.max_session_requests,
        "SESSION_TTL_MS": settings.session_ttl_s * 1000,
        "TOMBSTONE_MS": settings.tombstone_ttl_s * 1000,
        "TOKENS_TTL_MS": settings.token_stream_ttl_s * 1000,
        "BACKOFF_BASE_MS": settings.backoff_base_s * 1000,
        "BACKOFF_MAX_MS": settings.backoff_max_s * 1000,
        "EVENTS_MAX": settings.events_max_len,
        "UNITS": settings.fanout_units,
        "OFFER_BYTES": settings.offer_bytes,
        "MAX_OFFER_INPUTS": MAX_OFFER_INPUTS,
    }
    lines = [f"local {name} = {round(value)}\n" for name, value in values.items()]
    return "".join(lines) + f"local GROUP = '{GROUP}'\n"


class Script:
    """One script's source and its SHA-1, by which Redis knows it."""

    def __init__(self, name: str, source: str) -> None:
        self.name = name
        self.source = source
        self.sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


@functools.cache
def _text(name: str) -> str:
    return (importlib.resources.files("parrot_mq.store") / "lua" / f"{name}.lua").read_text("utf-8")


@functools.cache
def load_scripts(settings: StoreSettings) -> Mapping[str, Script]:
    """Return every script by its name, with the constants of ``settings`` built in."""
    head = _constants(settings) + _text("prelude")
    return {name: Script(name, head + "".join(map(_text, parts))) for name, parts in PARTS.items()}
