"""Batches of prompts through an engine, and what they took."""

from __future__ import annotations

import dataclasses
import random
import statistics
import time
from collections.abc import Iterator, Sequence

from parrot_mq.messages import SamplingParams
from parrot_workers.engine.port import EnginePort, PromptSegment, SequenceInput


@dataclasses.dataclass(frozen=True, slots=True)
class Work:
    """Prompts of ``prompt_tokens``, of which ``shared_tokens`` are the same in all, and ``output_tokens`` for each.

    ``token_ids`` are the ids that prompts are made of.
    """

    prompt_tokens: int
    shared_tokens: int
    output_tokens: int
    token_ids: range | tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Figures:
    """A batch that came at once.

    ``prefill_tokens_per_s`` counts all tokens of the prompts, cached ones too, until the last sequence has its first
    token; ``decode_tokens_per_s`` the output after that; ``output_tokens_per_s`` all output over all the time.
    """

    batch: int
    shared_tokens: int
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    output_tokens_per_s: float
    ttft_p50_ms: float

    @classmethod
    def median(cls, rounds: Sequence[Figures]) -> Figures:
        """Return the median of each figure, rounded to one decimal."""
        names = [field.name for field in dataclasses.fields(cls) if field.type == "float"]
        medians = {name: round(statistics.median(getattr(figures, name) for figures in rounds), 1) for name in names}
        return dataclasses.replace(rounds[0], **medians)


class EngineFault(RuntimeError):
    """The engine did not do what was asked; the message says what it said."""


def measure(engine: EnginePort, work: Work, batches: Sequence[int], rounds: int) -> Iterator[Figures]:
    """Give the medians of ``rounds`` for each batch, first without a shared prefix, then with it in the cache.

    A round before them is not counted. The engine must have no other work. Raises EngineFault.
    """
    source = random.Random(0)
    for shared_tokens in dict.fromkeys((0, work.shared_tokens)):
        kind = dataclasses.replace(work, shared_tokens=shared_tokens)
        for batch in batches:
            yield Figures.median([_round(engine, kind, batch, source) for _ in range(rounds + 1)][1:])


def _round(engine: EnginePort, work: Work, batch: int, source: random.Random) -> Figures:
    shared = tuple(source.choices(work.token_ids, k=work.shared_tokens))
    if shared:
        _run(engine, [shared], 1)
    own_tokens = work.prompt_tokens - work.shared_tokens
    prompts = [shared + tuple(source.choices(work.token_ids, k=own_tokens)) for _ in range(batch)]
    start_s = time.perf_counter()
    first_s, end_s, num_at_first = _run(engine, prompts, work.output_tokens)
    prefill_s = max(first_s) - start_s
    num_outputs = batch * work.output_tokens
    return Figures(
        batch=batch,
        shared_tokens=work.shared_tokens,
        prefill_tokens_per_s=batch * work.prompt_tokens / prefill_s,
        decode_tokens_per_s=(num_outputs - num_at_first) / (end_s - max(first_s)),
        output_tokens_per_s=num_outputs / (end_s - start_s),
        ttft_p50_ms=(statistics.median(first_s) - start_s) * 1000,
    )


def _run(engine: EnginePort, prompts: Sequence[tuple[int, ...]], num_tokens: int) -> tuple[list[float], float, int]:
    """Run ``prompts`` to their ends.

    Returns the time of each first token, the time of the end, and how many tokens there were at the last first token.
    """
    for number, prompt in enumerate(prompts):
        sampling = SamplingParams(max_tokens=num_tokens, ignore_eos=True)
        engine.add(SequenceInput(str(number), (PromptSegment("", token_ids=prompt),), sampling))
    first_s: dict[str, float] = {}
    num_done = num_at_first = 0
    while engine.has_work():
        outputs = engine.step()
        now_s, num_before = time.perf_counter(), len(first_s)
        for output in outputs:
            if output.error:
                raise EngineFault(output.error)
            num_done += len(output.token_ids)
            if output.token_ids:
                first_s.setdefault(output.id, now_s)
        if len(first_s) > num_before:
            num_at_first = num_done
    if num_done != len(prompts) * num_tokens:
        raise EngineFault(f"{num_done} tokens came out, not {len(prompts) * num_tokens}")
    return list(first_s.values()), time.perf_counter(), num_at_first
