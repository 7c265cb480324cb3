"""What a request will take, as far as anybody knows: lengths of its prompt and output, and how long it runs."""

from __future__ import annotations

from collections.abc import Iterable

from parrot_mq.scheduler.nodes import RequestNode
from parrot_mq.scheduler.policy import EngineLoad, OutputLengths, boundaries, prompt_tokens
from parrot_mq.scheduler.templates import Templates

NOMINAL_STEP_MS = 10.0
"""A decode step where no engine has reported one: for expected durations along a critical path."""


class Estimates:
    """Writes what is expected into the nodes of requests. ``templates`` and ``lengths`` are what it knows it from."""

    def __init__(self) -> None:
        self.templates = Templates()
        self.lengths = OutputLengths()
        self._step_ms = NOMINAL_STEP_MS

    def expect(self, node: RequestNode) -> None:
        """Estimate the output of a request, in tokens."""
        node.output_tokens, node.high_output_tokens = self.lengths.expected(node), self.lengths.high(node)

    def measure(self, node: RequestNode) -> None:
        """Estimate the prompt too, and digest its boundaries, as far as template and inputs are known."""
        template = self.templates.get(node)
        self.expect(node)
        node.prompt_tokens = prompt_tokens(template, node)
        if template is not None:
            node.prefix = tuple(boundaries(template, node))

    def duration_ms(self, node: RequestNode) -> float:
        """Return how long a request is expected to run, in milliseconds: its output at the pace of ``take_pace``."""
        return self._step_ms * node.output_tokens

    def take_pace(self, engines: Iterable[EngineLoad]) -> None:
        """Go by the decode step of the fastest of these engines, with all its slots taken."""
        records = [load.record for load in engines if load.record is not None]
        steps = (record.cost.decode_step_ms(record.max_num_seqs, 0) for record in records)
        self._step_ms = min(steps, default=NOMINAL_STEP_MS)
