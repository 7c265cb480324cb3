"""Writing what runs produced, through a Redis that may be away or full."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

from parrot_mq.errors import Fenced, Overloaded, StoreError
from parrot_workers.worker.run import Run
from parrot_workers.worker.stepper import monotonic_s

log = logging.getLogger(__name__)

GIVE_UP_S = 300.0
"""How long a result outlasts a Redis that is away or full, before it is dropped and the request runs again."""
RETRY_S = 1.0

T = TypeVar("T")


async def persist(
    work: Mapping[Run, T],
    write: Callable[[Sequence[T]], Awaitable[Sequence[StoreError | None]]],
    fenced: Callable[[Run, str], None],
) -> None:
    """Write something for each run once Redis takes it; ``fenced`` is called for runs that are not ours any more.

    ``write`` answers for each item what it was refused with, or raises for all. Nothing more is written for a run that
    is dropped meanwhile.
    """
    deadline_s = monotonic_s() + GIVE_UP_S
    while work := {run: item for run, item in work.items() if not run.dropped}:
        refusals: Sequence[StoreError | None]
        try:
            refusals = await write(list(work.values()))
        except StoreError as error:
            refusals = [error] * len(work)
        work, problem = _left(work, refusals, fenced)
        if problem is None:
            return
        wait_s = problem.retry_after_s if isinstance(problem, Overloaded) else RETRY_S
        requests = " ".join(run.claim.request for run in work)
        if monotonic_s() + wait_s > deadline_s:
            log.error("the outcome of %s is dropped, it will run again: %s", requests, problem)
            for run in work:
                fenced(run, "Redis did not take its outcome in time")
            return
        log.warning("request %s cannot be written yet: %s", requests, problem)
        await asyncio.sleep(wait_s)


def _left(
    work: Mapping[Run, T], refusals: Sequence[StoreError | None], fenced: Callable[[Run, str], None]
) -> tuple[dict[Run, T], StoreError | None]:
    """Return what is to be written again, and why."""
    left: dict[Run, T] = {}
    problem: StoreError | None = None
    for (run, item), refusal in zip(work.items(), refusals, strict=True):
        if isinstance(refusal, Fenced):
            fenced(run, str(refusal))
        elif refusal is not None:
            left[run], problem = item, refusal
    return left, problem
