"""Prompts as a simulated engine reads them: their tokens, their blocks, and what will be said to them."""

from __future__ import annotations

from parrot_workers.engine.port import EngineSpec, SequenceInput
from parrot_workers.sim.content import BYTES_PER_TOKEN, content_of, extend_digests, ids_content
from parrot_workers.sim.script import write_script
from parrot_workers.sim.sequence import SimSequence


class PromptReader:
    """Makes sequences of what an engine of ``spec`` is given; without prefix caching nothing has a digest."""

    def __init__(self, spec: EngineSpec, *, enable_prefix_caching: bool, mean_output_tokens: int) -> None:
        self._spec = spec
        self._enable_prefix_caching = enable_prefix_caching
        self._mean_output_tokens = mean_output_tokens

    def read(self, sequence: SequenceInput, arrival: int) -> SimSequence:
        """Return the sequence, the ``arrival``-th of the engine. Raises TooLong where the engine can never run it."""
        spec, content = self._spec, content_of(sequence.segments)
        num_tokens = max(1, len(content) // BYTES_PER_TOKEN)
        room = spec.max_model_len - num_tokens
        if room < 1:
            error = f"the prompt has {num_tokens} tokens, model {spec.model} takes {spec.max_model_len - 1}"
            raise TooLong(f"{error}; shorten the prompt or split the input", num_tokens)
        max_tokens = num_tokens + min(sequence.sampling.max_tokens, room)
        num_blocks = -(-max_tokens // spec.block_size)
        if num_blocks > spec.num_blocks:
            error = f"{num_blocks} blocks are needed, the engine has {spec.num_blocks}; ask for fewer max_tokens"
            raise TooLong(error, num_tokens)
        prompt = "".join(segment.text for segment in sequence.segments)
        digests = self.digests(content, sequence.salt)
        return SimSequence(
            source=sequence,
            content=content,
            num_prompt_tokens=num_tokens,
            max_tokens=max_tokens,
            digests=digests,
            num_private=num_blocks - len(digests),
            script=write_script(prompt, sequence.sampling, self._mean_output_tokens, room),
            place=(sequence.rank, arrival),
            arrival=arrival,
            objective=sequence.objective,
        )

    def digests(self, content: bytes, salt: str) -> list[bytes]:
        """Return those of the full blocks of a prompt."""
        digests: list[bytes] = []
        if self._enable_prefix_caching:
            extend_digests(digests, content, salt, self._spec.block_size)
        return digests

    def digests_with_output(self, sequence: SimSequence) -> list[bytes]:
        """Return those of the prompt and of what was generated, but for the last token: it was never computed with.

        Empty if the output was cut: then its text is not that of its tokens.
        """
        if not self._enable_prefix_caching or sequence.script.cut:
            return []
        digests = list(sequence.digests)
        output = ids_content(sequence.script.token_ids[: sequence.num_done - 1])
        extend_digests(digests, sequence.content + output, sequence.source.salt, self._spec.block_size)
        return digests


class TooLong(Exception):
    """A prompt of ``num_tokens`` that the engine can never run."""

    def __init__(self, message: str, num_tokens: int) -> None:
        super().__init__(message)
        self.num_tokens = num_tokens
