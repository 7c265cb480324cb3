"""The process around an engine worker: signals, logging, and how it ends."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import sys
from collections.abc import Sequence

from parrot_mq.entry import explain, start_logging
from parrot_mq.settings import StoreSettings, WorkerSettings
from parrot_mq.store import connect
from parrot_mq.store.server import known_url, no_server
from parrot_workers.worker.factory import engine_factory
from parrot_workers.worker.options import Options, parse_options
from parrot_workers.worker.shell import EngineWorker

SWITCH_INTERVAL_S = 0.001
"""How long the step thread keeps the interpreter while the event loop waits for it. Python's own 5 ms would be added
to every hop."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run an engine worker until it is told to stop; return the exit status: 0, or that of ``explain``."""
    arguments = sys.argv[1:] if arguments is None else arguments
    verbose = "--verbose" in arguments
    start_logging(verbose)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    worker, status = None, 0
    try:
        worker = _worker(parse_options(arguments))
        asyncio.run(_run(worker))
    except Exception as error:  # noqa: BLE001 - the process's outermost frame: an error becomes a line and a status
        status = explain(error, verbose)
    if worker is not None and worker.hung:
        _abandon(status)
    return status


def _worker(options: Options) -> EngineWorker:
    url = known_url(options.redis_url)
    if url is None:
        raise no_server()
    store = StoreSettings.from_env()
    return EngineWorker(
        functools.partial(connect, url, store),
        engine_factory(options),
        name=options.name,
        kind=options.kind,
        settings=WorkerSettings.from_env(drain_timeout_s=options.drain_timeout_s),
    )


async def _run(worker: EngineWorker) -> None:
    loop = asyncio.get_running_loop()
    signals = 0

    def told() -> None:
        nonlocal signals
        signals += 1
        worker.stop(now=signals > 1)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told)
    await worker.run()


def _abandon(status: int) -> None:
    """End although a thread is busy in a library (loading weights, a step): the interpreter would wait for it."""
    sys.stderr.flush()
    os._exit(status)
