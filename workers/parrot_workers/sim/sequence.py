"""A request inside a simulated engine."""

from __future__ import annotations

import dataclasses

from parrot_mq.messages import ObjectiveKind
from parrot_workers.engine.port import SequenceInput, SequenceOutput
from parrot_workers.sim.script import Script

_STRICTNESS = {kind: -index for index, kind in enumerate(ObjectiveKind)}
"""ObjectiveKind goes from the least to the most strict; the strictest is served first."""


@dataclasses.dataclass(slots=True, eq=False)
class SimSequence:
    """Its prompt as ``content``, what it says, and how far the engine has come with it.

    ``digests`` are its full prompt blocks, empty without a prefix cache; ``num_private`` its other ones, up to its
    longest output. ``place`` is its rank and age in the queue, or those of the first of its task group.
    """

    source: SequenceInput
    content: bytes
    num_prompt_tokens: int
    max_tokens: int
    """Of prompt and output."""
    digests: list[bytes]
    num_private: int
    script: Script
    place: tuple[float, int]
    arrival: int
    objective: ObjectiveKind
    num_done: int = 0
    """Tokens of the script that are out, those forced by an earlier attempt included."""
    num_computed: int = 0
    """Tokens of prompt and output whose keys and values are there."""
    num_cached: int = 0
    """Prompt tokens found in the cache."""

    @property
    def id(self) -> str:
        """The id its owner gave it."""
        return self.source.id

    @property
    def order(self) -> tuple[int, float, int, int]:
        """Sort key: the strictest objective first, then rank, then age; members of a task group side by side."""
        return _STRICTNESS[self.objective], *self.place, self.arrival

    @property
    def context(self) -> int:
        """Tokens of prompt and output so far."""
        return self.num_prompt_tokens + self.num_done

    @property
    def num_to_prefill(self) -> int:
        """Tokens to be computed before the next one comes out; meaningless once it decodes."""
        return self.context - self.num_computed

    def say(self) -> SequenceOutput:
        """Return the next token, or the end."""
        script, index = self.script, self.num_done
        token_ids, text = script.token_ids[index : index + 1], ""
        if token_ids:
            self.num_done += 1
            text = script.text[script.certain[index - 1] if index else 0 : script.certain[index]]
        if self.num_done < len(script.token_ids):
            return SequenceOutput(self.source.id, token_ids, text)
        return SequenceOutput(
            id=self.source.id,
            token_ids=token_ids,
            text=text,
            finish=script.finish,
            full_text=script.text,
            full_token_ids=() if script.cut else script.token_ids,
            num_prompt_tokens=self.num_prompt_tokens,
            num_cached_tokens=self.num_cached,
            num_output_tokens=self.num_done,
        )

    def say_forced(self) -> SequenceOutput:
        """Take what an earlier attempt published as said, and return it as one output."""
        self.num_done = min(len(self.source.forced_ids), len(self.script.token_ids))
        text = self.script.text[: self.script.certain[self.num_done - 1]]
        return SequenceOutput(self.source.id, self.script.token_ids[: self.num_done], text)
