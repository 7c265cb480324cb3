"""What engines a simulation has."""

from __future__ import annotations

import dataclasses

from parrot_mq.messages import CostModel


@dataclasses.dataclass(frozen=True, slots=True)
class Profile:
    """A machine and a model, as numbers.

    ``cost`` in milliseconds; ``num_blocks`` KV blocks of ``block_size`` tokens; at most ``max_num_seqs`` sequences of
    at most ``max_model_len`` tokens. ``sources`` says of each parameter where it comes from.
    """

    name: str
    cost: CostModel
    num_blocks: int
    block_size: int = 16
    max_num_seqs: int = 256
    max_model_len: int = 32_768
    sources: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class EngineSetup:
    """``count`` equal engines that serve ``model``.

    ``name`` is what the world calls them: with a number where there are several. ``max_running_tokens`` limits the sum
    of prompt and output lengths that run at once; 0: only the KV memory does. ``true_cost`` is what steps really cost;
    None: what the profile says, which is what the engine announces.
    """

    profile: Profile
    name: str = "engine"
    count: int = 1
    model: str = "sim"
    prefix_caching: bool = True
    max_running_tokens: int = 0
    true_cost: CostModel | None = None

    def names(self) -> list[str]:
        """Return the engines' names."""
        return [self.name] if self.count == 1 else [f"{self.name}-{number}" for number in range(self.count)]
