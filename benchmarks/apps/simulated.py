"""One run in virtual time: the whole pipeline with simulated engines, at the reference's scale."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from benchmarks.apps.bench import Bench, Experiment, Outcome, Scale
from benchmarks.apps.drivers import ClientSide, Network, RequestTrace, WholeGraph
from benchmarks.apps.systems import System, latency_capacity_tokens
from benchmarks.apps.texts import SimulatedTexts
from parrot_mq.settings import StoreSettings
from parrot_workers.simulation import EngineSetup, Profile, World, load_profile, simulate

TENANT = "bench"
STORE = StoreSettings(tombstone_ttl_s=1e6, session_ttl_s=1e6, max_value_bytes=64 << 20)
"""What is finished stays until its trace is read."""
WEIGHTS_7B_OVER_13B = 6.74 / 13.02
KV_7B_OVER_13B = (32 * 4096) / (40 * 5120)


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """A run: what it showed, and each call's life."""

    outcome: Outcome
    traces: list[RequestTrace]


def profile_of(name: str) -> Profile:
    """Return a profile by name; "a100-7b" is that of the 13B model, scaled.

    Work that goes with the weights shrinks as they do (6.74 to 13.02 billion), reading keys and values as layers times
    width do; the KV memory is the 6800 blocks that the reference gave its 7B model on that machine.
    """
    if name != "a100-7b":
        return load_profile(name)
    large = load_profile("a100-13b")
    cost = dataclasses.replace(
        large.cost,
        prefill_per_token_ms=large.cost.prefill_per_token_ms * WEIGHTS_7B_OVER_13B,
        decode_base_ms=large.cost.decode_base_ms * WEIGHTS_7B_OVER_13B,
        decode_per_seq_ms=large.cost.decode_per_seq_ms * WEIGHTS_7B_OVER_13B,
        decode_per_context_token_ms=large.cost.decode_per_context_token_ms * KV_7B_OVER_13B,
        prefill_per_pair_ms=large.cost.prefill_per_pair_ms * KV_7B_OVER_13B,
    )
    return dataclasses.replace(large, name=name, cost=cost, num_blocks=6800)


def engines_of(experiment: Experiment, system: System, scale: Scale) -> EngineSetup:
    """Return the engines that a system runs on: the experiment's, with what the system does without left out."""
    profile = profile_of(experiment.profile)
    capacity = latency_capacity_tokens(profile.cost, experiment.context_tokens) if system.latency_centric else 0
    if not system.shared_attention:
        profile = dataclasses.replace(profile, cost=dataclasses.replace(profile.cost, shared_saving=0.0))
    return EngineSetup(
        profile,
        count=scale.engines or experiment.num_engines,
        prefix_caching=system.prefix_caching,
        max_running_tokens=capacity,
    )


def run_simulated(
    experiment: Experiment, values: Mapping[str, Any], system: System, seed: int, scale: Scale = Scale()
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
