"""Steps that are launched before the tokens of the step before are read: the same outputs, nothing lost or leaked."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parrot_mq.errors import ConfigError
from parrot_mq.messages import CostModel, ObjectiveKind, SamplingParams
from parrot_workers.engine.engine import Engine
from parrot_workers.engine.engine_settings import EngineSettings
from parrot_workers.engine.host_copy import HostCopy
from parrot_workers.engine.port import FinishReason, PromptSegment, SequenceInput, SequenceOutput
from parrot_workers.engine.sequence import Sequence
from parrot_workers.engine.speculator import Speculator
from tests.engine.test_engine import (
    GREEDY,
    NUM_TOKENS,
    MakeEngine,
    Reference,
    add,
    drain,
    expected,
    make_prompts,
    tokens,
)
from tests.engine.test_speculation import CHEAP_ROWS

FREE = SamplingParams(max_tokens=NUM_TOKENS, ignore_eos=True)
DRAWN = dataclasses.replace(FREE, temperature=1.0, top_p=0.95, seed=5)
SAMPLINGS = {
    "greedy": [FREE],
    "drawn": [
        DRAWN,
        dataclasses.replace(DRAWN, temperature=1.7, top_k=20, seed=6),
        FREE,
        dataclasses.replace(DRAWN, temperature=0.7, min_p=0.1, top_p=1.0, seed=7),
    ],
    "short": [dataclasses.replace(FREE, max_tokens=count) for count in (1, 2, 3, NUM_TOKENS)],
    "stops": [
        dataclasses.replace(DRAWN, stop_token_ids=tuple(range(3, 384, 9))),
        dataclasses.replace(DRAWN, stop=("e", "q"), min_tokens=4),
        SamplingParams(max_tokens=NUM_TOKENS, temperature=2.0, seed=3),
        dataclasses.replace(FREE, stop_token_ids=tuple(range(3, 384, 7)), min_tokens=2),
    ],
    "adjusted": [
        FREE,
        dataclasses.replace(DRAWN, max_tokens=7, repetition_penalty=1.3),
        dataclasses.replace(FREE, max_tokens=6, frequency_penalty=0.5, presence_penalty=0.3),
        dataclasses.replace(DRAWN, min_tokens=5),
    ],
}
SETTINGS: dict[str, dict[str, Any]] = {
    "roomy": {},
    "chunked": {"max_num_batched_tokens": 12},
    "tight": {"num_blocks": 12},
    "unshared": {"enable_prefix_caching": False},
    "few": {"max_num_seqs": 2},
    "host memory": {"num_blocks": 12, "host_kv_memory_bytes": 2**20},
}


def said(outputs: list[SequenceOutput]) -> tuple[Any, ...]:
    """All that a sequence's outputs say, however they are cut."""
    last = outputs[-1]
    text = "".join(output.text for output in outputs)
    return tokens(outputs), text, last.finish, last.full_text, last.full_token_ids, last.num_output_tokens


def answers(engine: Engine, sampling: list[SamplingParams]) -> dict[str, tuple[Any, ...]]:
    """Two rounds of eight prompts that begin alike."""
    answered = {}
    for turn in range(2):
        for index, prompt in enumerate(make_prompts(8, shared=35, seed=5, longest=50)):
            add(engine, f"{turn}-{index}", prompt, sampling[index % len(sampling)])
        answered |= {name: said(outputs) for name, outputs in drain(engine).items()}
    return answered


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("case", SETTINGS)
def test_outputs_are_those_without(make_engine: MakeEngine, case: str, sampling: str) -> None:
    engine = make_engine("llama", run_ahead=True, **SETTINGS[case])
    plain = make_engine("llama", **SETTINGS[case])
    assert answers(engine, SAMPLINGS[sampling]) == answers(plain, SAMPLINGS[sampling])
    ours, theirs = engine.stats(), plain.stats()
    assert ours.num_ahead_steps > theirs.num_ahead_steps == 0
    assert ours.num_generated_tokens == theirs.num_generated_tokens
    assert ours.num_free_blocks == ours.num_blocks
    assert (ours.num_discarded_tokens > 0) == (sampling == "stops")
    if case == "roomy":
        assert engine._blocks.num_cached_blocks == plain._blocks.num_cached_blocks
        assert ours.num_cached_tokens == theirs.num_cached_tokens


@pytest.mark.parametrize("kind", ["llama", "llama_64", "gpt2", "gemma2"])
def test_outputs_are_those_of_transformers(make_engine: MakeEngine, reference: Reference, kind: str) -> None:
    prompts = make_prompts(7, shared=20, seed=1)
    engine = make_engine(kind, run_ahead=True)
    for output, prompt in zip(engine.generate(prompts, GREEDY), prompts, strict=True):
        assert list(output.token_ids) == expected(reference, kind, prompt)
    assert engine.stats().num_ahead_steps == NUM_TOKENS - 1, "all but the prompts' step"


def test_the_next_step_is_launched_before_this_one_is_read(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine("llama", run_ahead=True)
    runner = engine._runner
    assert runner is not None
    log: list[str] = []
    run, read = runner.run, HostCopy.read
    monkeypatch.setattr(runner, "run", lambda *arguments: (log.append("launch"), run(*arguments))[1])
    monkeypatch.setattr(HostCopy, "read", lambda tokens: (log.append("read"), read(tokens))[1])
    engine.generate(make_prompts(3), FREE)
    assert log == ["launch", *["launch", "read"] * (NUM_TOKENS - 1), "read"]
    stats = engine.stats()
    assert (stats.num_steps, stats.num_ahead_steps, stats.num_discarded_tokens) == (NUM_TOKENS, NUM_TOKENS - 1, 0)


def test_with_drafts(make_engine: MakeEngine) -> None:
    # Random weights soon run in circles: then drafts are verified, and before it steps run ahead.
    prompts = make_prompts(4, shared=20, seed=3)
    sampling = dataclasses.replace(FREE, max_tokens=60)
    plain = make_engine("gemma2").generate(prompts, sampling)
    engine = make_engine("gemma2", speculate=True, run_ahead=True)
    engine._scheduler.speculator = Speculator(CHEAP_ROWS)
    assert [o.token_ids for o in engine.generate(prompts, sampling)] == [o.token_ids for o in plain]
    stats = engine.stats()
    assert stats.num_accepted_tokens > 20
    assert stats.num_ahead_steps > 0
    assert stats.num_free_blocks == stats.num_blocks
    engine.check()


def test_drafts_that_cannot_pay_hold_up_nothing(make_engine: MakeEngine) -> None:
    engine = make_engine("gemma2", speculate=True, run_ahead=True)
    engine._scheduler.speculator = Speculator(CostModel(decode_base_ms=0.001, decode_per_seq_ms=10))
    engine.generate(make_prompts(4, shared=20, seed=3), FREE)
    assert engine.stats().num_ahead_steps == NUM_TOKENS - 1


def begun(make_engine: MakeEngine, prompts: list[list[int]], **settings: Any) -> Engine:
    """An engine with a step of all ``prompts`` in flight, each of which has said three tokens."""
    engine = make_engine("llama", run_ahead=True, **settings)
    for index, prompt in enumerate(prompts):
        add(engine, str(index), prompt)
    said_so_far = [output for _ in range(3) for output in engine.step()]
    assert len(tokens(said_so_far)) == 3 * len(prompts)
    assert engine._steps.in_flight is not None
    return engine


def test_a_stop_throws_the_row_behind_it_away(make_engine: MakeEngine) -> None:
    [prompt] = make_prompts(1, seed=4)
    [free] = make_engine("llama").generate([prompt], FREE)
    stop = next(index for index in range(5, NUM_TOKENS) if free.token_ids[index] not in free.token_ids[:index])
    sampling = dataclasses.replace(FREE, stop_token_ids=(free.token_ids[stop],))
    engine = make_engine("llama", run_ahead=True)
    add(engine, "s", prompt, sampling)
    outputs = list(itertools.chain.from_iterable(engine.step() for _ in range(stop + 1)))
    assert tokens(outputs) == list(free.token_ids[: stop + 1])
    assert outputs[-1].finish is FinishReason.STOP
    # Its blocks are free, though the step in flight still writes to one of them.
    assert engine.stats().num_free_blocks == engine.stats().num_blocks
    assert engine.has_work()
    engine.check()
    assert engine.step() == []
    assert not engine.has_work()
    stats = engine.stats()
    assert (stats.num_discarded_tokens, stats.num_generated_tokens, stats.num_steps) == (1, stop + 1, stop + 2)
    engine.check()


def test_a_length_leaves_nothing_behind(make_engine: MakeEngine) -> None:
    engine = make_engine("llama", run_ahead=True)
    add(engine, "s", make_prompts(1)[0])
    outputs = [engine.step() for _ in range(NUM_TOKENS)]
    assert outputs[-1][-1].finish is FinishReason.LENGTH
    assert not engine.has_work()
    assert engine.stats().num_discarded_tokens == 0


def test_an_abort_between_two_steps(make_engine: MakeEngine, reference: Reference) -> None:
    prompts = make_prompts(3, shared=20, seed=3)
    # So few blocks that the newcomer gets those that the aborted sequence had, and its row in flight is written to.
    engine = begun(make_engine, prompts, num_blocks=12)
    engine.abort("1")
    add(engine, "1", prompts[1])
    assert engine._steps.in_flight is not None
    ended = [output for output in engine.step() if output.finish is not None]
    assert [(output.id, output.finish) for output in ended] == [("1", FinishReason.ABORTED)]
    assert ended[0].num_output_tokens == 3
    assert engine.stats().num_discarded_tokens == 1
    outputs = drain(engine)
    assert tokens(outputs["1"]) == expected(reference, "llama", prompts[1])
    for name in ("0", "2"):
        assert tokens(outputs[name]) == expected(reference, "llama", prompts[int(name)])[4:]
    assert engine.stats().num_free_blocks == 12


def test_all_aborted_between_two_steps(make_engine: MakeEngine) -> None:
    engine = begun(make_engine, make_prompts(2))
    for name in "01":
        engine.abort(name)
    assert {output.finish for output in engine.step()} == {FinishReason.ABORTED}
    assert not engine.has_work()
    assert engine.stats().num_discarded_tokens == 2
    engine.check()


def test_what_comes_between_two_steps_is_planned_for(make_engine: MakeEngine, reference: Reference) -> None:
    prompts = make_prompts(3, seed=8)
    engine = begun(make_engine, prompts[:2])
    add(engine, "2", prompts[2])
    assert {output.id for output in engine.step()} == {"0", "1"}, "the step in flight knew nothing of it"
    assert engine._steps.in_flight is None, "nothing is launched that leaves it out"
    assert {output.id for output in engine.step()} == {"0", "1", "2"}
    assert tokens(drain(engine)["2"]) == expected(reference, "llama", prompts[2])[1:]


def test_a_prompt_computed_ahead_is_planned_for(make_engine: MakeEngine) -> None:
    engine = begun(make_engine, make_prompts(1))
    engine.prefill(SequenceInput("hint", (PromptSegment("", token_ids=tuple(range(3, 51))),), FREE))
    ended = [output.id for _ in range(3) for output in engine.step() if output.finish is FinishReason.PREFILLED]
    assert ended == ["hint"]
    assert engine._steps.in_flight is not None, "then steps run ahead again"


def test_blocks_are_published_once_their_tokens_are_known(make_engine: MakeEngine) -> None:
    engine = make_engine("llama", run_ahead=True)
    add(engine, "s", make_prompts(1, shared=20)[0], dataclasses.replace(FREE, max_tokens=50))
    for _ in range(49):
        engine.step()
        [sequence] = engine._scheduler.running
        # The step in flight computes the last known token, and may fill a block with it.
        assert sequence.num_published_blocks == sequence.num_tokens // 16
        assert len(sequence.block_hashes) == sequence.num_published_blocks
    drain(engine)


def test_has_no_step_in_flight_once_closed(make_engine: MakeEngine) -> None:
    engine = begun(make_engine, make_prompts(2))
    engine.close()
    engine.close()
    assert engine._steps.in_flight is None
    assert not engine.has_work()
    assert engine.step() == []


class Fault(RuntimeError):
    """Injected."""


def failing(calls: Iterator[int], at: set[int]) -> None:
    if next(calls) in at:
        raise Fault


@pytest.mark.parametrize("where", ["launch", "read", "take in"])
def test_a_step_that_fails_loses_nothing(
    make_engine: MakeEngine, reference: Reference, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    prompts = make_prompts(4, shared=40, seed=6)
    engine = make_engine("llama", run_ahead=True)
    runner = engine._runner
    assert runner is not None
    calls, run, read, append = itertools.count(), runner.run, HostCopy.read, Sequence.append
    if where == "launch":
        monkeypatch.setattr(runner, "run", lambda *arguments: (failing(calls, {1, 4, 5, 9}), run(*arguments))[1])
    elif where == "read":
        monkeypatch.setattr(HostCopy, "read", lambda ids: (failing(calls, {0, 3, 4, 8}), read(ids))[1])
    else:
        monkeypatch.setattr(Sequence, "append", lambda s, id_: (failing(calls, {2, 7, 8, 21}), append(s, id_))[1])
    outputs: dict[str, list[SequenceOutput]] = {}
    for index, prompt in enumerate(prompts):
        add(engine, str(index), prompt)
    failures = 0
    while engine.has_work():
        try:
            for output in engine.step():
                outputs.setdefault(output.id, []).append(output)
        except Fault:
            failures += 1
            assert engine._steps.in_flight is None
            assert engine._blocks.num_cached_blocks == engine.stats().num_running == 0
        engine.check()
    assert failures == 4
    assert engine.stats().num_ahead_steps > 0
    for index, prompt in enumerate(prompts):
        assert tokens(outputs[str(index)]) == expected(reference, "llama", prompt)
        assert "".join(output.text for output in outputs[str(index)]) == outputs[str(index)][-1].full_text


HOWS = [
    dataclasses.replace(FREE, max_tokens=12),
    dataclasses.replace(DRAWN, max_tokens=25),
    dataclasses.replace(DRAWN, stop_token_ids=tuple(range(3, 384, 11))),
    dataclasses.replace(FREE, max_tokens=5, repetition_penalty=1.2),
]
PROMPTS = make_prompts(6, shared=20, seed=11, longest=30)


@settings(max_examples=25, deadline=None)
@given(
    actions=st.lists(
        st.tuples(
            st.sampled_from(["add", "add", "add", "abort", "abort", "objective", "prefill", "retain", "release"]),
            st.integers(0, len(PROMPTS) - 1),
            st.integers(0, len(HOWS) - 1),
            st.integers(0, 4),
        ),
        min_size=1,
        max_size=20,
    ),
    num_blocks=st.sampled_from([10, 14, 60]),
)
def test_whatever_comes_between_steps(
    make_engine: MakeEngine, actions: list[tuple[str, int, int, int]], num_blocks: int
) -> None:
    whole = whole_answers(make_engine)
    engine = make_engine("llama", run_ahead=True, num_blocks=num_blocks, max_num_seqs=3, max_num_batched_tokens=30)
    outputs: dict[str, list[SequenceOutput]] = {}
    added: dict[str, tuple[int, int]] = {}
    for prompt, how, num_steps, action in [(p, h, n, a) for a, p, h, n in actions]:
        name = list(added)[prompt % len(added)] if added else "nobody"
        if action == "add":
            name = str(len(added))
            added[name] = (prompt, how)
            add(engine, name, PROMPTS[prompt], HOWS[how])
        elif action == "abort":
            engine.abort(name)
        elif action == "objective":
            engine.set_objective(name, ObjectiveKind.THROUGHPUT)
        elif action == "prefill":
            segment = PromptSegment("", token_ids=tuple(PROMPTS[prompt]))
            engine.prefill(SequenceInput(f"hint {prompt}", (segment,), FREE))
        elif action == "retain":
            engine.retain("key", (PromptSegment("", token_ids=tuple(PROMPTS[prompt])),), "", float("inf"))
        else:
            engine.release("key")
        for _ in range(num_steps):
            for output in engine.step():
                outputs.setdefault(output.id, []).append(output)
            engine.check()
    for name, rest in drain(engine).items():
        outputs.setdefault(name, []).extend(rest)
    for name, (prompt, how) in added.items():
        ended, answer = outputs[name], whole[prompt, how]
        assert [output.finish for output in ended[:-1]] == [None] * (len(ended) - 1)
        if ended[-1].finish is FinishReason.ABORTED:
            assert tokens(ended) == list(answer.token_ids[: len(tokens(ended))])
        else:
            assert said(ended)[:3] == (list(answer.token_ids), answer.full_text, answer.finish)
    assert engine.stats().num_free_blocks == num_blocks


_whole: dict[tuple[int, int], SequenceOutput] = {}


def whole_answers(make_engine: MakeEngine) -> dict[tuple[int, int], SequenceOutput]:
    """What each prompt is answered in each way, step by step and alone."""
    if not _whole:
        engine = make_engine("llama")
        for prompt, how in itertools.product(range(len(PROMPTS)), range(len(HOWS))):
            [_whole[prompt, how]] = engine.generate([PROMPTS[prompt]], HOWS[how])
    return _whole


def test_the_switch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert not EngineSettings(tmp_path).runs_ahead
    assert EngineSettings(tmp_path, run_ahead=True).runs_ahead
    assert EngineSettings(tmp_path, device="cuda:1").runs_ahead
    assert not EngineSettings(tmp_path, device="cuda:1", run_ahead=False).runs_ahead
    assert not EngineSettings(tmp_path, device="cuda:1", tensor_parallel_size=2).runs_ahead
    with pytest.raises(ConfigError, match="run_ahead is for a model in one process"):
        EngineSettings(tmp_path, run_ahead=True, tensor_parallel_size=2)
