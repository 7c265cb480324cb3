"""An engine used alone: prompts in, whole outputs out."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Sequence

from parrot_mq.messages import SamplingParams
from parrot_workers.engine.port import EnginePort, PromptSegment, SequenceInput, SequenceOutput

Prompt = str | Sequence[int] | Sequence[PromptSegment]
"""Text, token ids, or segments."""


def generate(
    engine: EnginePort,
    prompts: str | Sequence[Prompt],
    sampling: SamplingParams | Sequence[SamplingParams] | None = None,
) -> list[SequenceOutput]:
    """Run ``prompts`` to their ends on an idle ``engine``; see ``Engine.generate``."""
    if engine.has_work():
        raise ValueError("generate is for an engine of one's own: this one has other work")
    prompts = [prompts] if isinstance(prompts, str) else prompts
    if sampling is None or isinstance(sampling, SamplingParams):
        sampling = [sampling or SamplingParams()] * len(prompts)
    run = uuid.uuid4().hex
    ids = [f"{run}-{index}" for index in range(len(prompts))]
    for sequence_id, prompt, params in zip(ids, prompts, sampling, strict=True):
        engine.add(SequenceInput(sequence_id, segments_of(prompt), params))
    token_ids: dict[str, tuple[int, ...]] = dict.fromkeys(ids, ())
    done: dict[str, SequenceOutput] = {}
    while engine.has_work():
        for output in engine.step():
            token_ids[output.id] += output.token_ids
            if output.finish is not None:
                done[output.id] = dataclasses.replace(output, token_ids=token_ids[output.id])
    return [done[sequence_id] for sequence_id in ids]


def segments_of(prompt: Prompt) -> tuple[PromptSegment, ...]:
    """Return a prompt as segments: text becomes one segment of template text."""
    if isinstance(prompt, str):
        return (PromptSegment(prompt),)
    segments = tuple(part for part in prompt if isinstance(part, PromptSegment))
    if segments:
        return segments
    return (PromptSegment("", token_ids=tuple(part for part in prompt if isinstance(part, int))),)
