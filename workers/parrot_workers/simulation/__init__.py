"""The whole pipeline in one process and in virtual time: ``simulate`` runs an application against it.

SDK, store scripts (on fakeredis), scheduler and engine workers are the ones that run for real; engines compute nothing
and cost what a profile says. Deterministic for a seed. Needs the ``sim`` extra.
"""

from parrot_workers.simulation.errors import Deadlock, OutOfTime, SimulationError, TooSlow
from parrot_workers.simulation.profiles import Profile, load_profile, profile_names
from parrot_workers.simulation.run import simulate
from parrot_workers.simulation.setup import EngineSetup
from parrot_workers.simulation.wire import Loss, Traffic
from parrot_workers.simulation.world import World

__all__ = [
    "Deadlock",
    "EngineSetup",
    "Loss",
    "OutOfTime",
    "Profile",
    "SimulationError",
    "TooSlow",
    "Traffic",
    "World",
    "load_profile",
    "profile_names",
    "simulate",
]
