"""The port every engine implements: ``add``, ``abort``, ``step``, ``stats``. No Redis, no asyncio below it."""

from __future__ import annotations

import dataclasses
import enum
from typing import Protocol, runtime_checkable

from parrot_mq.messages import CostModel, ObjectiveKind, SamplingParams


class FinishReason(enum.StrEnum):
    """Why a sequence ended."""

    STOP = "stop"
    """End of sequence, a stop token or a stop string."""
    LENGTH = "length"
    """``max_tokens``, or the model's length, was reached."""
    ABORTED = "aborted"
    PREFILLED = "prefilled"
    """The prompt was computed ahead; there is no output."""
    INVALID = "invalid"
    """The engine cannot run it; ``SequenceOutput.error`` says why and what to do."""


@dataclasses.dataclass(frozen=True, slots=True)
class PromptSegment:
    """A piece of a prompt: template text (may hold special tokens) or a value (never parsed for them).

    ``token_ids`` are the ids that were generated for this very value by the same model, if they are known.
    """

    text: str
    is_value: bool = False
    token_ids: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class SequenceInput:
    """A request as an engine sees it.

    ``salt`` separates tenants in the prefix cache. ``forced_ids`` are tokens of the output that were published by an
    earlier attempt: the engine takes them as generated and goes on from there. It says them again first, in one output
    of their own, with the text that is certain after them. Lower ``rank`` starts earlier. ``group`` names the task
    group of which ``group_size`` members were sent together: they had best be in one batch.
    """

    id: str
    segments: tuple[PromptSegment, ...]
    sampling: SamplingParams
    objective: ObjectiveKind = ObjectiveKind.LATENCY
    rank: float = 0.0
    salt: str = ""
    forced_ids: tuple[int, ...] = ()
    group: str = ""
    group_size: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class SequenceOutput:
    """What one step did for one sequence.

    ``token_ids`` are new this step, or else the ``forced_ids`` that are said again; ``text`` is text that became
    certain this step (nothing that may still turn out to be part of a stop string or of an unfinished character). With
    ``finish`` set, ``full_text`` and ``full_token_ids`` hold the whole output: text without the stop string; ids
    without stop or end token, exactly those whose decoding is ``full_text``, or empty where no such ids exist.
    """

    id: str
    token_ids: tuple[int, ...] = ()
    text: str = ""
    finish: FinishReason | None = None
    full_text: str = ""
    full_token_ids: tuple[int, ...] = ()
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_output_tokens: int = 0
    error: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot for the heartbeat."""

    num_running: int
    num_waiting: int
    num_blocks: int
    num_free_blocks: int
    num_preemptions: int = 0
    num_generated_tokens: int = 0
    num_prefill_tokens: int = 0
    num_cached_tokens: int = 0
    num_reloaded_tokens: int = 0
    """Cached tokens that came back from host memory."""
    num_steps: int = 0
    num_draft_tokens: int = 0
    """Tokens proposed by speculative decoding."""
    num_accepted_tokens: int = 0
    """Those of them that were right."""
    num_ahead_steps: int = 0
    """Steps that were launched before the tokens of the step before were read."""
    num_discarded_tokens: int = 0
    """Computed by such steps for sequences that had ended."""
    cost: CostModel | None = None
    """What the newest steps say that its work costs; None: nobody has looked, so what the spec announced holds."""


@dataclasses.dataclass(frozen=True, slots=True)
class EngineSpec:
    """What is fixed about an engine once its model is loaded.

    ``tokenizer_digest`` identifies the tokenizer, so that generated ids travel only between equal ones.
    """

    model: str
    kind: str
    max_num_seqs: int
    max_model_len: int
    block_size: int
    num_blocks: int
    tokenizer_digest: str = ""
    cost: CostModel = dataclasses.field(default_factory=CostModel)


class EnginePort(Protocol):
    """A model with continuous batching. Not thread-safe: one thread owns it."""

    @property
    def spec(self) -> EngineSpec:
        """What is fixed about it."""

    def add(self, sequence: SequenceInput) -> None:
        """Queue a sequence. Never raises for the sequence's own faults: those come out of ``step`` as INVALID."""

    def abort(self, sequence_id: str) -> None:
        """End a sequence within one step; unknown ids are ignored."""

    def step(self) -> list[SequenceOutput]:
        """Run one step and return what changed; returns at once with [] if there is nothing to do."""

    def stats(self) -> EngineStats:
        """Return a snapshot, cheap enough to call every step."""

    def has_work(self) -> bool:
        """Whether ``step`` would do anything."""

    def check(self) -> None:
        """Raise AssertionError if its books are wrong; cheap enough to be called whenever it falls idle."""

    def close(self) -> None:
        """Free memory and end helper threads. Idempotent."""


@runtime_checkable
class TakesHints(Protocol):
    """What an engine may offer beyond its port: work done, and content kept, before it is asked for.

    Hints never fail and never hold up sequences: what an engine cannot do it leaves.
    """

    def prefill(self, sequence: SequenceInput) -> None:
        """Compute the keys and values of a prompt, when nothing else wants the time or the memory.

        ``step`` says when it ends: PREFILLED, or ABORTED if it had to give way. ``abort`` ends it as any other.
        """

    def retain(self, key: str, segments: tuple[PromptSegment, ...], salt: str, until_s: float) -> None:
        """Keep the cached beginning of a prompt, what is there and what will be, longer than what is not retained.

        Until ``release(key)``, or ``until_s`` on this process's monotonic clock. The same key again replaces it.
        """

    def release(self, key: str) -> None:
        """Keep nothing more for ``key``; unknown ones are ignored."""
