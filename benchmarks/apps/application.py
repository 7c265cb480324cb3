"""An application, written once: it makes calls and names the results that it is for. How calls travel is a driver's.

What an application builds is a graph of calls whose prompts have exactly known lengths. A driver that knows graphs
submits it whole; one that does not sends each call when its inputs have come back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

Handle: TypeAlias = Any
"""An output that a call will have, as its driver sees it. Applications only pass it on."""


@dataclasses.dataclass(frozen=True, slots=True)
class Function:
    """A prompt: ``parts[0]``, first input, ``parts[1]``, second input, ..., ``parts[-1]``; then ``num_output`` tokens.

    Equal functions are one.
    """

    name: str
    parts: tuple[str, ...]
    num_output: int

    @property
    def num_inputs(self) -> int:
        return len(self.parts) - 1

    @property
    def template(self) -> str:
        """The text as a semantic function's template; inputs are called input_0, input_1, ..."""
        slots = [f"{{{{input_{number}}}}}" for number in range(self.num_inputs)]
        pieces = [
            piece for part, slot in zip(self.parts, [*slots, "{{output}}"], strict=True) for piece in (part, slot)
        ]
        return "".join(pieces)


class Calls(Protocol):
    """Where an application makes its calls."""

    def call(self, function: Function, *inputs: str | Handle) -> Handle:
        """Make a call with texts and with outputs of earlier calls. Returns at once."""


Application: TypeAlias = Callable[[Calls], Sequence[Handle]]
"""Makes all its calls and returns the outputs that it is for. It awaits nothing."""
