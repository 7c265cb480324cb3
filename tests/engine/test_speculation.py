"""Speculative decoding: drafts from the text itself, chosen by what they are worth, verified exactly."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parrot_mq.messages import CostModel, ObjectiveKind, SamplingParams
from parrot_workers.engine.batch_scheduler import BatchScheduler
from parrot_workers.engine.block_manager import BlockManager
from parrot_workers.engine.detokenizer import Detokenizer
from parrot_workers.engine.ngram_index import MAX_CANDIDATES, MAX_MATCH, Draft, NgramIndex
from parrot_workers.engine.port import SequenceInput
from parrot_workers.engine.sequence import Sequence
from parrot_workers.engine.speculator import AcceptanceRate, Speculator
from tests.engine.test_engine import MakeEngine, add, drain, make_prompts, tokens

CHEAP_ROWS = CostModel(decode_base_ms=10, decode_per_seq_ms=0.001)
DEAR_ROWS = CostModel(decode_base_ms=0.001, decode_per_seq_ms=10)


def make_sequence(token_ids: list[int], *, name: str = "s", max_tokens: int = 100, **sampling: Any) -> Sequence:
    params = SamplingParams(max_tokens=max_tokens, **sampling)
    return Sequence(
        SequenceInput(name, (), params), token_ids, Detokenizer(lambda ids: "x" * len(ids)), arrival=0,
        max_output_tokens=max_tokens, stop_ids=frozenset(),
    )  # fmt: skip


def slow_draft(ids: list[int], num_tokens: int) -> Draft | None:
    """The definition, by search: the latest of the nearest candidates with the longest match."""
    ends = [end for end in range(2, len(ids)) if ids[end - 2 : end] == ids[-2:]][-MAX_CANDIDATES:]
    if len(ids) < 3 or not ends:
        return None

    def match_len(end: int) -> int:
        pairs = zip(reversed(ids[:end]), reversed(ids), strict=False)
        return min(MAX_MATCH, sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))

    best = max(ends, key=lambda end: (match_len(end), end))
    text = list(ids)
    for offset in range(num_tokens):
        text.append(text[best + offset])
    return Draft(text[len(ids) :], match_len(best))


@given(st.lists(st.integers(0, 2), max_size=60), st.integers(1, 12), st.data())
def test_the_index_finds_what_a_search_finds(ids: list[int], num_tokens: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(ids)))
    growing = ids[:start]
    index = NgramIndex(growing)
    index.draft(num_tokens)
    for token_id in ids[start:]:
        growing.append(token_id)
        if data.draw(st.booleans()):
            assert index.draft(num_tokens) == slow_draft(growing, num_tokens)
    assert index.draft(num_tokens) == slow_draft(ids, num_tokens)


def test_no_draft_without_an_earlier_occurrence_or_room() -> None:
    assert NgramIndex([1, 2]).draft(4) is None
    assert NgramIndex([1, 2, 3, 4]).draft(4) is None
    assert NgramIndex([1, 2, 3, 1, 2]).draft(0) is None


def test_a_draft_ends_where_the_output_may() -> None:
    text = [1, 2, 3, 4, 5, 1, 2]
    assert make_sequence(text, max_tokens=3).draft(8) == Draft([3, 4], 2)
    assert make_sequence(text, max_tokens=1).draft(8) is None


@pytest.mark.parametrize(
    "sampling",
    [{"repetition_penalty": 1.1}, {"presence_penalty": 0.5}, {"frequency_penalty": 0.5}, {"min_tokens": 4},
     {"logit_bias": {1: 1.0}}],
)  # fmt: skip
def test_no_draft_while_the_logits_depend_on_the_output(sampling: dict[str, Any]) -> None:
    assert make_sequence([1, 2, 3, 1, 2]).draft(4) is not None
    assert make_sequence([1, 2, 3, 1, 2], **sampling).draft(4) is None


def test_acceptance_follows_the_observations() -> None:
    rate = AcceptanceRate()
    assert rate(3) == pytest.approx(0.5)
    for _ in range(200):
        rate.observe(3, 4, rejected=False)
    assert rate(3) > 0.95
    assert rate(2) == pytest.approx(0.5)
    for _ in range(200):
        rate.observe(3, 0, rejected=True)
    assert rate(3) < 0.05


def test_drafts_are_taken_while_rows_are_cheap() -> None:
    sequences = [make_sequence([1, 2, 3, 4, 5, 6, 1, 2]) for _ in range(3)]
    chosen = Speculator(CHEAP_ROWS).choose(sequences, 100)
    assert set(chosen) == set(sequences)
    assert all(draft.token_ids == [3, 4, 5, 6, 1, 2, 3, 4] for draft in chosen.values())


def test_no_drafts_where_rows_are_what_costs() -> None:
    assert Speculator(DEAR_ROWS).choose([make_sequence([1, 2, 3, 1, 2])], 100) == {}


def test_the_load_decides() -> None:
    cost = CostModel(decode_base_ms=8, decode_per_seq_ms=1)
    numbers = []
    for load in (1, 4, 16, 64):
        sequences = [make_sequence([1, 2, 3, 4, 5, 6, 1, 2]) for _ in range(load)]
        chosen = Speculator(cost).choose(sequences, 100)
        numbers.append(sum(len(draft.token_ids) for draft in chosen.values()))
    assert numbers[0] > 0
    assert numbers[2:] == [0, 0]


def test_drafts_keep_to_the_budget() -> None:
    sequences = [make_sequence([1, 2, 3, 4, 5, 6, 1, 2]) for _ in range(3)]
    chosen = Speculator(CHEAP_ROWS).choose(sequences, 7)
    assert sum(len(draft.token_ids) for draft in chosen.values()) == 7
    assert Speculator(CHEAP_ROWS).choose(sequences, 0) == {}


@given(
    st.lists(st.tuples(st.integers(2, 4), st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=3),
    st.floats(0.1, 20),
    st.floats(0.05, 5),
)
def test_the_choice_yields_the_most_tokens_per_time(
    seen: list[tuple[int, int, int]], base_ms: float, row_ms: float
) -> None:
    speculator = Speculator(CostModel(decode_base_ms=base_ms, decode_per_seq_ms=row_ms))
    for match_len, accepted, rejected in seen:
        for _ in range(rejected):
            speculator.rate.observe(match_len, 0, rejected=True)
        speculator.rate.observe(match_len, accepted, rejected=False)
    # Each sequence's end has occurred with a match of just this length.
    sequences = [
        make_sequence([9, *range(20, 20 + length), 5, 5, 5, 8, *range(20, 20 + length)]) for length, _, _ in seen
    ]
    rates = [speculator.rate(length) for length, _, _ in seen]

    def speed(lengths: tuple[int, ...]) -> float:
        gained = sum(rate**j for rate, length in zip(rates, lengths, strict=True) for j in range(1, length + 1))
        return (len(seen) + gained) / (base_ms + row_ms * (len(seen) + sum(lengths)))

    chosen = speculator.choose(sequences, 100)
    ours = tuple(len(chosen[s].token_ids) if s in chosen else 0 for s in sequences)
    best = max(speed(lengths) for lengths in itertools.product(range(9), repeat=len(seen)))
    assert speed(ours) == pytest.approx(best, rel=1e-6)


def test_drafts_keep_to_the_rows_of_logits() -> None:
    blocks = BlockManager(100)
    scheduler = BatchScheduler(
        blocks, max_num_seqs=4, max_num_batched_tokens=64, max_num_rows=9, speculator=Speculator(CHEAP_ROWS)
    )
    sequences = [make_sequence([1, 2, 3, 4, 5, 6, 1, 2], name=str(number)) for number in range(3)]
    for sequence in sequences:
        scheduler.add(sequence)
    for chunk in scheduler.plan():
        chunk.sequence.num_computed_tokens += chunk.num_tokens
        chunk.sequence.append(3)
    late = make_sequence([1, 2, 3], name="late")
    scheduler.add(late)
    chunks = scheduler.plan()
    assert {chunk.sequence: chunk.num_rows for chunk in chunks}[late] == 1
    assert sum(chunk.num_rows for chunk in chunks) == 9
    assert sum(len(chunk.token_ids) for chunk in chunks) == 3 + 3 + 5
    blocks.check(scheduler)


def test_rows_for_fewer_than_all_sequences_are_refused() -> None:
    with pytest.raises(ValueError, match="3 rows of logits are too few"):
        BatchScheduler(BlockManager(8), max_num_seqs=4, max_num_batched_tokens=16, max_num_rows=3)


def foresee(monkeypatch: pytest.MonkeyPatch, answers: dict[tuple[int, ...], list[int]]) -> None:
    """Make sequences draft their own ``answers`` by prompt, with a wrong token here and there."""
    dice = random.Random(7)

    def draft(sequence: Sequence, num_tokens: int) -> Draft | None:
        answer = answers[tuple(sequence.token_ids[: sequence.num_prompt_tokens])]
        done = sequence.num_output_tokens
        room = sequence.max_output_tokens - done - 1
        token_ids = [id_ if dice.random() < 0.8 else (id_ + 1) % 384 for id_ in answer[done : done + num_tokens]][:room]
        return Draft(token_ids, 4) if token_ids else None

    monkeypatch.setattr(Sequence, "draft", draft)


@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_sampled_tokens_are_those_without_drafts(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    prompts = make_prompts(6, shared=12, seed=9, longest=12)
    sampling = SamplingParams(max_tokens=40, temperature=temperature, top_p=0.9, seed=5, ignore_eos=True)
    without = [list(output.token_ids) for output in make_engine("llama").generate(prompts, sampling)]
    foresee(monkeypatch, {tuple(prompt): answer for prompt, answer in zip(prompts, without, strict=True)})
    engine = make_engine("llama", speculate=True)
    assert [list(output.token_ids) for output in engine.generate(prompts, sampling)] == without
    assert 0 < engine.stats().num_accepted_tokens < engine.stats().num_draft_tokens


@pytest.mark.parametrize("ending", [{"max_tokens": 23}, {"stop_token_ids": True}, {"stop": True}])
def test_an_output_ends_inside_a_draft(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, ending: dict[str, Any]
) -> None:
    prompt = make_prompts(1, shared=20, seed=3)[0]
    plain = make_engine("llama").generate([prompt], SamplingParams(max_tokens=60, ignore_eos=True))[0]
    if "stop_token_ids" in ending:
        ending = {"stop_token_ids": (plain.token_ids[25],)}
    elif "stop" in ending:
        ending = {"stop": (plain.full_text[20:24],)}
    sampling = SamplingParams(**{"max_tokens": 60, "ignore_eos": True, **ending})
    without = make_engine("llama").generate([prompt], sampling)[0]
    assert 0 < len(without.token_ids) < 60
    foresee(monkeypatch, {tuple(prompt): list(plain.token_ids)})
    engine = make_engine("llama", speculate=True)
    output = engine.generate([prompt], sampling)[0]
    assert engine.stats().num_accepted_tokens > 0
    assert (output.token_ids, output.full_text, output.finish) == (without.token_ids, without.full_text, without.finish)
    engine.check()


def test_the_text_of_several_tokens_is_published_once(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = make_prompts(1, shared=20, seed=3)[0]
    sampling = SamplingParams(max_tokens=60, ignore_eos=True)
    plain = make_engine("llama").generate([prompt], sampling)[0]
    foresee(monkeypatch, {tuple(prompt): list(plain.token_ids)})
    engine = make_engine("llama", speculate=True)
    add(engine, "a", prompt, sampling)
    outputs = drain(engine)["a"]
    assert any(len(output.token_ids) > 1 for output in outputs)
    assert "".join(output.text for output in outputs) == outputs[-1].full_text == plain.full_text
    assert outputs[-1].num_output_tokens == len(tokens(outputs)) == 60


def test_drafts_come_from_the_text_itself(make_engine: MakeEngine) -> None:
    # Random weights soon run in circles, which is as good as copying.
    engine = make_engine("gemma2", speculate=True)
    sampling = SamplingParams(max_tokens=60, ignore_eos=True)
    prompts = make_prompts(2, shared=20, seed=3)
    outputs = engine.generate(prompts, sampling)
    assert [o.token_ids for o in outputs] == [o.token_ids for o in make_engine("gemma2").generate(prompts, sampling)]
    stats = engine.stats()
    assert stats.num_accepted_tokens > 20
    assert stats.num_steps < 60


def test_objectives_may_change_while_waiting_and_running(make_engine: MakeEngine) -> None:
    engine = make_engine("llama", max_num_seqs=1)
    prompts = make_prompts(3)
    for name, prompt in zip("abc", prompts, strict=True):
        add(engine, name, prompt, objective=ObjectiveKind.THROUGHPUT)
    engine.set_objective("c", ObjectiveKind.LATENCY)
    engine.set_objective("nobody", ObjectiveKind.LATENCY)
    order = [output.id for _ in range(100) for output in engine.step() if output.finish is not None]
    assert order == ["c", "a", "b"]
    engine.check()
