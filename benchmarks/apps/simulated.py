"""One run in virtual time: the whole pipeline with simulated engines, at the reference's scale."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from benchmarks.apps.bench import FULL, Bench, Experiment, Result, Scale
from benchmarks.apps.drivers import ClientSide, Network, WholeGraph
from benchmarks.apps.systems import REFERENCE_BATCH_TOKENS, REFERENCE_PROFILES, System, latency_seqs
from benchmarks.apps.texts import SimulatedTexts
from parrot_mq.messages import CostModel
from parrot_mq.settings import StoreSettings
from parrot_workers.simulation import EngineSetup, World, simulate
from parrot_workers.simulation.profiles import load_profile

TENANT = "bench"
STORE = StoreSettings(tombstone_ttl_s=1e6, session_ttl_s=1e6, max_value_bytes=64 << 20)
"""What is finished stays until its trace is read."""


def engines_of(experiment: Experiment, system: System, scale: Scale) -> EngineSetup:
    """Return the engines that a system runs on: the experiment's, with what the system does without left out.

    Raises KeyError for the reference's baseline where it had none.
    """
    name = REFERENCE_PROFILES[experiment.profile] if system.is_reference else experiment.profile
    profile = load_profile(name)
    if not system.shared_attention:
        profile = dataclasses.replace(profile, cost=dataclasses.replace(profile.cost, shared_saving=0.0))
    if experiment.num_blocks:
        profile = dataclasses.replace(profile, num_blocks=experiment.num_blocks)
    setup = EngineSetup(
        profile,
        count=scale.engines or experiment.num_engines,
        prefix_caching=system.prefix_caching,
        max_running_tokens=_bound_tokens(experiment, system, profile.cost) if system.latency_centric else 0,
    )
    return dataclasses.replace(setup, max_num_batched_tokens=REFERENCE_BATCH_TOKENS) if system.is_reference else setup


def _bound_tokens(experiment: Experiment, system: System, cost: CostModel) -> int:
    if system.is_reference:
        return experiment.reference_tokens
    shape = experiment.shape
    seqs = latency_seqs(cost, shape, prefix_caching=system.prefix_caching)
    return system.max_running_tokens or round(seqs * (shape.prompt_tokens + shape.output_tokens))


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
