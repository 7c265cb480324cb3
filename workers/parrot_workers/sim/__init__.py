"""A simulated engine: a cost model, a clock and deterministic text behind the engine port. It never imports torch."""

from parrot_workers.sim.clock import Clock, InstantClock, RealClock, StepClock
from parrot_workers.sim.engine import SimEngine

__all__ = ["Clock", "InstantClock", "RealClock", "SimEngine", "StepClock"]
