"""Every setting in one place, frozen, with its unit in its name.

Each class reads the environment through ``from_env``: field ``lease_s`` of ``StoreSettings`` is ``PARROT_MQ_LEASE_S``.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, Self

from parrot_mq.errors import ConfigError

ENV_PREFIX = "PARROT_MQ_"


@dataclasses.dataclass(frozen=True, slots=True)
class _FromEnv:
    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **overrides: Any) -> Self:
        """Build the settings from defaults, then ``PARROT_MQ_*`` variables, then ``overrides`` that are not None."""
        environ = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            name = ENV_PREFIX + field.name.upper()
            if name in environ:
                values[field.name] = _parse(name, environ[name], str(field.type))
        values.update({name: value for name, value in overrides.items() if value is not None})
        return cls(**values)


def _parse(name: str, text: str, kind: str) -> Any:
    try:
        if kind == "bool":
            return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[text.lower()]
        return {"int": int, "float": float, "str": str}[kind](text)
    except (ValueError, KeyError):
        raise ConfigError(f"{name}={text!r} is not a valid {kind}; unset it or give a {kind}") from None


@dataclasses.dataclass(frozen=True, slots=True)
class StoreSettings(_FromEnv):
    """Limits and durations that the scripts apply. All processes of one deployment should agree on them."""

    partitions: int = 1
    """Number of partitions; fixed for the life of the data."""
    inline_bytes: int = 32 * 1024
    """Values of this size and more live in a key of their own."""
    offer_bytes: int = 4 * 1024
    """A request goes into its engine's queue together with its inputs, if all of it is not larger than this."""
    max_value_bytes: int = 8 * 1024 * 1024
    max_live_requests: int = 1_000_000
    """Unfinished requests per partition; beyond it submits answer ``Overloaded``."""
    max_session_requests: int = 200_000
    """Unfinished requests per session."""
    lease_s: float = 10.0
    """A running request whose engine has not renewed it for this long is given to another engine."""
    heartbeat_ttl_s: float = 3.0
    max_attempts: int = 3
    """Starts of one request before it becomes a dead letter."""
    max_undispatches: int = 20
    """Dispatches of one request that never started, before they count as attempts."""
    backoff_base_s: float = 0.2
    backoff_max_s: float = 30.0
    session_ttl_s: float = 3600.0
    """A session that nobody has touched for this long, and that has nothing live, is deleted."""
    tombstone_ttl_s: float = 900.0
    """How long a finished request's hash and an unread variable of a closed session stay."""
    token_stream_ttl_s: float = 300.0
    staged_value_ttl_s: float = 300.0
    events_max_len: int = 20_000
    fanout_units: int = 128
    """What one script call may do for waiters (one that gets a value is a unit, one that dies by an error is two); the
    rest goes through ``..work``."""
    want_grace_s: float = 5.0
    """How long an id that nobody has made yet is waited for."""


@dataclasses.dataclass(frozen=True, slots=True)
class ClientSettings(_FromEnv):
    """The SDK's settings."""

    get_timeout_s: float = 300.0
    recheck_s: float = 2.0
    """Waiters re-read the state this often, whatever pub/sub says."""
    submit_chunk: int = 64
    submit_timeout_s: float = 30.0


@dataclasses.dataclass(frozen=True, slots=True)
class SchedulerSettings(_FromEnv):
    """The scheduler's settings."""

    leader_ttl_s: float = 1.5
    engine_poll_s: float = 0.25
    reap_interval_s: float = 0.5
    model_grace_s: float = 10.0
    """How long a request may ask for a model that no engine has ever registered."""
    batch_hold_ms: float = 50.0
    """A batch is scheduled at its last chunk, or this long after its first."""
    queue_depth_steps: float = 2.0
    """Requests are dispatched ahead of a free slot by about this many decode steps."""
    learn_interval_s: float = 5.0
    """How often what was learned of output lengths is saved for the next leader."""
    lane_credits: int = 8
    """Requests that scripts may put into an idle engine's queue without asking (see ``scheduler.lanes``); 0: none."""
    drain_timeout_s: float = 10.0
    decision_log: str = ""
    """A file for everything that decisions are made from, and the decisions (see ``scheduler.decision_log``)."""
    decision_log_mib: float = 64.0
    """It and the one before it get about this large each."""
    deduce_objectives: bool = True
    """What a reader asks of a variable holds for the requests before it too; off: for its own request alone."""
    task_groups: bool = True
    """Parallel requests that feed one consumer are placed as one."""
    prefix_affinity: bool = True
    """Requests go where their prompt's beginning is cached, or is about to be, if that is worth it."""
    sibling_admission: bool = True
    """The members of a task group enter an engine's batch together."""
    eager_prefill: bool = True
    """The known beginning of a waiting request's prompt is computed while its other inputs are being made."""
    streamed_prefill: bool = True
    """An input that is being generated flows into its reader's prefill."""
    retain_prefixes: bool = True
    """What a waiting request will read stays cached before anything that nobody waits for."""
    single_flight: bool = True
    """Equal deterministic requests of a tenant that run at the same time run once."""


@dataclasses.dataclass(frozen=True, slots=True)
class WorkerSettings(_FromEnv):
    """An engine worker's settings."""

    heartbeat_s: float = 0.5
    renew_s: float = 2.0
    claim_batch: int = 64
    drain_timeout_s: float = 30.0
    emit_interval_ms: float = 20.0
    """Streamed pieces are joined for this long before they are written."""
    single_flight: bool = True
    """Equal deterministic requests of a tenant that run here at a time run once; the scheduler can say no as well."""
