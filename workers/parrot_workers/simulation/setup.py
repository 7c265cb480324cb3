"""What engines a simulation has."""

from __future__ import annotations

import dataclasses

from parrot_mq.messages import CostModel
from parrot_workers.simulation.profiles import Profile


@dataclasses.dataclass(frozen=True, slots=True)
class EngineSetup:
    """``count`` equal engines that serve ``model``.

    ``name`` is what the world calls them: with a number where there are several. ``max_running_tokens`` limits the sum
    of prompts and longest outputs that run at once; 0: only the KV memory does. A step computes at most
    ``max_num_batched_tokens``. ``true_cost`` is what steps really cost; None: what the profile says, which is what the
    engine announces. Outputs have ``mean_output_tokens`` on average (0: always ``max_tokens``) unless they
    ``ignore_eos``.
    """

    profile: Profile
    name: str = "engine"
    count: int = 1
    model: str = "sim"
    prefix_caching: bool = True
    max_running_tokens: int = 0
    max_num_batched_tokens: int = 2048
    mean_output_tokens: int = 0
    true_cost: CostModel | None = None

    def names(self) -> list[str]:
        """Return the engines' names."""
        return [self.name] if self.count == 1 else [f"{self.name}-{number}" for number in range(self.count)]
