"""Simulated runs in several processes at once: each is in virtual time, so that none notices the others."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.apps.bench import Result
from benchmarks.apps.plan import Order

Job = tuple[Order, Mapping[str, Any]]
"""A run, and the values of its point."""


def run_all(jobs: Sequence[Job], num_processes: int) -> Iterator[tuple[Order, Result, float]]:
    """Yield each run, its result and the real seconds that it took, in the order of ``jobs``.

    The results are the same for any number of processes.
    """
    if num_processes == 1:
        for order, values in jobs:
            yield order, *_run(order, values)
        return
    # A fresh process each: a simulation replaces clocks in modules, which a fork would inherit half done.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(num_processes, mp_context=context) as pool:
        futures = [pool.submit(_run, order, values) for order, values in jobs]
        try:
            for (order, _), future in zip(jobs, futures, strict=True):
                yield order, *future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _run(order: Order, values: Mapping[str, Any]) -> tuple[Result, float]:
    from benchmarks.apps.simulated import run_simulated

    began_s = time.perf_counter()
    result = run_simulated(order.experiment, values, order.system, order.repeat)
    return result, time.perf_counter() - began_s
