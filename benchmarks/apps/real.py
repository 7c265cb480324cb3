"""Runs on this machine: SDK, a Redis, a scheduler process and an engine worker process for each system, taking turns.

One engine computes the engine benchmark's small model, every length divided by ``REAL.tokens``. A latency-centric
engine runs as many sequences at once as it does in simulation, where the time per token can be seen to be bounded.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import platform
import tempfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import parrot_mq as P
from benchmarks.apps.bench import REAL, Bench, Experiment, Result
from benchmarks.apps.drivers import ClientSide, Network, WholeGraph
from benchmarks.apps.systems import SWITCHES, System, latency_seqs
from benchmarks.apps.texts import TokenizerTexts
from benchmarks.engine.driver import model_folder
from benchmarks.engine.shapes import DTYPES, MAX_LEN
from parrot_mq.settings import ENV_PREFIX, StoreSettings
from parrot_mq.stack import EngineChoice, run_stack
from parrot_mq.store.server import RedisServer
from parrot_workers.simulation.profiles import load_profile

TENANT = "bench"
MAX_NUM_SEQS = 64
KV_GIB = 2
READY_TIMEOUT_S = 300.0
_numbers = itertools.count(1)


def engine_arguments(experiment: Experiment, system: System, dtype: str, num_threads: int) -> tuple[str, ...]:
    """Return the engine worker's command line for a system."""
    cost = load_profile(experiment.profile).cost
    seqs = latency_seqs(cost, experiment.shape, prefix_caching=system.prefix_caching)
    most = min(MAX_NUM_SEQS, seqs) if system.latency_centric else MAX_NUM_SEQS
    return (
        *("--dtype", DTYPES[dtype], "--num-threads", str(num_threads), "--kv-memory-gib", str(KV_GIB)),
        *("--max-num-seqs", str(most), "--max-model-len", str(MAX_LEN), "--no-speculate"),
        *(() if system.prefix_caching else ("--no-prefix-caching",)),
    )


def environment_of(system: System) -> dict[str, str]:
    """Return the scheduler's switches as its process reads them."""
    settings = system.scheduler
    return {f"{ENV_PREFIX}{name.upper()}": str(int(getattr(settings, name))) for name in SWITCHES}


class Machine:
    """Starts what a system needs at its first run, and keeps it until ``stack`` ends; ``network`` scales the round
    trip.
    """

    def __init__(self, stack: contextlib.AsyncExitStack, model: str, num_threads: int, network: float = 1.0) -> None:
        self._stack = stack
        self._model, self._num_threads, self._network = model, num_threads, network
        self._clients: dict[tuple[Any, ...], P.Client] = {}

    async def run(
        self, experiment: Experiment, values: Mapping[str, Any], system: System, seed: int, dtype: str
    ) -> Result:
        """Run one point. Every run is a tenant of its own, so that none reads what another left in the cache."""
        folder = model_folder(self._model, dtype)
        client = await self._client(experiment, system, folder, dtype)
        async with client.session(tenant=f"{TENANT}-{next(_numbers)}") as session:
            make = ClientSide if system.client_side else WholeGraph
            driver = make(client, session, Network(seed, self._network))
            bench = Bench(driver, TokenizerTexts(folder, seed), REAL, seed)
            outcome = await experiment.run(bench, **values)
            traces = await driver.requests()
            await session.delete()
            return Result(outcome, traces)

    async def _client(self, experiment: Experiment, system: System, folder: Path, dtype: str) -> P.Client:
        arguments = engine_arguments(experiment, system, dtype, self._num_threads)
        environment = environment_of(system)
        key = (folder, arguments, *environment.items())
        if key not in self._clients:
            choice = EngineChoice("torch", str(folder), arguments)
            self._clients[key] = await self._stack.enter_async_context(_service(choice, environment))
            await _warm_up(self._clients[key])
        return self._clients[key]


@contextlib.asynccontextmanager
async def _service(choice: EngineChoice, environment: Mapping[str, str]) -> AsyncIterator[P.Client]:
    with tempfile.TemporaryDirectory(prefix="bench-apps-") as data:
        async with RedisServer(data) as redis, run_stack(redis.url, [choice], environment=environment) as stack:
            await stack.wait_until_ready(READY_TIMEOUT_S)
            store_settings = StoreSettings(tombstone_ttl_s=3600)
            async with P.connect(redis.url, store_settings=store_settings) as client:
                yield client


async def _warm_up(client: P.Client) -> None:
    """Have the engine compute a long prompt and a batch, so that nothing is computed for the first time."""
    function = P.SemanticFunction.from_template(
        "{{text}}{{output}}", name="warm_up", outputs={"output": P.output(max_tokens=32, ignore_eos=True)}
    )
    async with client.session(tenant=f"{TENANT}-warm-up") as session:
        answers = [function(f"{number} " + " ba" * 500, session=session) for number in range(8)]
        for answer in answers:
            await answer.get(timeout_s=READY_TIMEOUT_S)
        await session.delete()


def description() -> str:
    """Return the machine in words: the processor's name and how many of its cores we may use."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return f"{len(os.sched_getaffinity(0))} cores of {names[0] if names else platform.processor()}"
