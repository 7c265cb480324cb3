"""One run in virtual time: the whole pipeline with simulated engines, at the reference's scale."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from benchmarks.apps.bench import Bench, Experiment, Result, Scale
from benchmarks.apps.drivers import ClientSide, Network, WholeGraph
from benchmarks.apps.systems import System, latency_seqs
from benchmarks.apps.texts import SimulatedTexts
from parrot_mq.settings import StoreSettings
from parrot_workers.simulation import EngineSetup, World, simulate
from parrot_workers.simulation.profiles import load_profile

TENANT = "bench"
STORE = StoreSettings(tombstone_ttl_s=1e6, session_ttl_s=1e6, max_value_bytes=64 << 20)
"""What is finished stays until its trace is read."""


FULL = Scale()


def engines_of(experiment: Experiment, system: System, scale: Scale) -> EngineSetup:
    """Return the engines that a system runs on: the experiment's, with what the system does without left out."""
    profile, shape = load_profile(experiment.profile), experiment.shape
    seqs = latency_seqs(profile.cost, shape, prefix_caching=system.prefix_caching)
    bound = system.max_running_tokens or round(seqs * (shape.prompt_tokens + shape.output_tokens))
    if not system.shared_attention:
        profile = dataclasses.replace(profile, cost=dataclasses.replace(profile.cost, shared_saving=0.0))
    return EngineSetup(
        profile,
        count=scale.engines or experiment.num_engines,
        prefix_caching=system.prefix_caching,
        max_running_tokens=bound if system.latency_centric else 0,
    )


def run_simulated(
    experiment: Experiment, values: Mapping[str, Any], system: System, seed: int, scale: Scale = FULL
) -> Result:
    """Run one point of an experiment on one system. The same arguments give the same result on any machine."""

    async def main(world: World) -> Result:
        async with world.client.session(tenant=TENANT) as session:
            make = ClientSide if system.client_side else WholeGraph
            driver = make(world.client, session, Network(seed))
            bench = Bench(driver, SimulatedTexts(seed), scale, seed)
            outcome = await experiment.run(bench, **values)
            return Result(outcome, await driver.requests())

    return simulate(
        main, [engines_of(experiment, system, scale)], seed=seed, scheduler=system.scheduler, store=STORE, tenant=TENANT
    )
