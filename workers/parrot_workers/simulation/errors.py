"""How a simulation fails.

ParrotError
└── SimulationError        a simulation could not be run to its end
    ├── Deadlock           nothing is scheduled, and the application waits
    ├── OutOfTime          the application was not done in the virtual time it was given
    └── TooSlow            the simulation was not done in the real time it was given
"""

from __future__ import annotations

from parrot_mq.errors import ParrotError


class SimulationError(ParrotError):
    """A simulation could not be run to its end."""


class Deadlock(SimulationError):
    """Nothing is scheduled, and the application waits."""


class OutOfTime(SimulationError):
    """The application was not done in the virtual time it was given."""


class TooSlow(SimulationError):
    """The simulation was not done in the real time it was given."""
