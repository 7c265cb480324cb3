"""Hints: prompts computed ahead, prefixes retained, and neither in anybody's way."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Any

import pytest

from parrot_kernels.attention_plan import BLOCK_SIZE
from parrot_mq.messages import SamplingParams
from parrot_workers.engine import prefill_ahead
from parrot_workers.engine.engine import Engine
from parrot_workers.engine.port import FinishReason, PromptSegment, SequenceInput, SequenceOutput, TakesHints
from parrot_workers.sim import SimEngine

MakeEngine = Callable[..., Engine]
GREEDY = SamplingParams(max_tokens=12, ignore_eos=True)


def make_prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    dice = random.Random(seed)
    return (0, *(dice.randrange(3, 384) for _ in range(length - 1)))


def source(name: str, prompt: tuple[int, ...], sampling: SamplingParams = GREEDY, **more: Any) -> SequenceInput:
    return SequenceInput(name, (PromptSegment("", token_ids=prompt),), sampling, **more)


def drain(engine: Engine) -> dict[str, SequenceOutput]:
    """Run the engine until it is idle, its books checked after every step; return each sequence's last output."""
    last: dict[str, SequenceOutput] = {}
    while engine.has_work():
        last |= {output.id: output for output in engine.step()}
        engine.check()
    return last


def test_both_engines_take_hints(make_engine: MakeEngine) -> None:
    assert isinstance(make_engine("llama"), TakesHints)
    assert isinstance(SimEngine(), TakesHints)


def test_a_prompt_computed_ahead_is_found(make_engine: MakeEngine) -> None:
    prompt = make_prompt(75)
    engine = make_engine("llama", max_num_batched_tokens=20)
    engine.prefill(source("hint", prompt))
    assert drain(engine) == {"hint": SequenceOutput("hint", finish=FinishReason.PREFILLED)}
    stats = engine.stats()
    assert (stats.num_prefill_tokens, stats.num_generated_tokens) == (64, 0)
    assert stats.num_free_blocks == stats.num_blocks
    engine.add(source("request", prompt))
    output = drain(engine)["request"]
    assert output.num_cached_tokens == 64
    [alone] = make_engine("llama").generate([list(prompt)], GREEDY)
    assert output.full_token_ids == alone.full_token_ids


def test_what_is_there_is_not_computed_again(make_engine: MakeEngine) -> None:
    engine = make_engine("llama")
    for name in ("first", "second"):
        engine.prefill(source(name, make_prompt(64)))
        assert drain(engine)[name].finish is FinishReason.PREFILLED
    assert engine.stats().num_prefill_tokens == 64


def test_a_prompt_shorter_than_a_block_has_nothing_to_keep(make_engine: MakeEngine) -> None:
    engine = make_engine("llama")
    engine.prefill(source("hint", make_prompt(BLOCK_SIZE - 1)))
    assert drain(engine)["hint"].finish is FinishReason.PREFILLED
    assert engine.stats().num_prefill_tokens == 0


def test_a_long_prompt_is_computed_as_far_as_the_memory_for_it_goes(make_engine: MakeEngine) -> None:
    engine = make_engine("llama", num_blocks=12)
    engine.prefill(source("hint", make_prompt(100)))
    drain(engine)
    assert engine.stats().num_prefill_tokens == 3 * BLOCK_SIZE


def test_requests_come_first_and_decode_beside_it(make_engine: MakeEngine) -> None:
    engine = make_engine("llama", max_num_batched_tokens=32, num_blocks=40)
    engine.prefill(source("hint", make_prompt(96)))
    engine.add(source("request", make_prompt(30, seed=1)))
    assert [output.id for output in engine.step()] == ["request"]
    assert engine.stats().num_prefill_tokens == 30 + 2, "only what is left over"
    outputs = drain(engine)
    assert outputs["hint"].finish is FinishReason.PREFILLED
    [alone] = make_engine("llama").generate([list(make_prompt(30, seed=1))], GREEDY)
    assert outputs["request"].full_token_ids == alone.full_token_ids


def test_nothing_is_computed_ahead_while_anybody_waits(make_engine: MakeEngine) -> None:
    engine = make_engine("llama", max_num_seqs=1)
    engine.prefill(source("hint", make_prompt(64)))
    for index in range(2):
        engine.add(source(str(index), make_prompt(20, seed=1 + index)))
    ended = [output.id for _ in range(60) for output in engine.step() if output.finish is not None]
    assert ended == ["0", "1", "hint"]


def begun(make_engine: MakeEngine, **settings: Any) -> Engine:
    """An engine of eight blocks, two of them half way through a hint."""
    engine = make_engine("llama", num_blocks=8, max_num_batched_tokens=20, **settings)
    engine.prefill(source("hint", make_prompt(32)))
    assert engine.step() == []
    assert engine.stats().num_free_blocks == 6
    return engine


def test_a_request_that_needs_the_blocks_gets_them(make_engine: MakeEngine) -> None:
    engine = begun(make_engine)
    engine.add(source("request", make_prompt(110, seed=1)))
    outputs = drain(engine)
    assert outputs["hint"].finish is FinishReason.ABORTED
    assert outputs["request"].finish is FinishReason.LENGTH
    stats = engine.stats()
    assert (stats.num_preemptions, stats.num_free_blocks) == (0, 8)


def test_a_running_sequence_that_grows_takes_the_blocks_before_anybody_is_preempted(make_engine: MakeEngine) -> None:
    engine = make_engine("llama", num_blocks=8, max_num_batched_tokens=24)
    engine.add(source("request", make_prompt(95, seed=1), SamplingParams(max_tokens=30, ignore_eos=True)))
    while not engine.stats().num_generated_tokens:
        engine.step()
    engine.prefill(source("hint", make_prompt(32)))
    engine.step()
    assert engine.stats().num_free_blocks == 0
    outputs = drain(engine)
    assert outputs["hint"].finish is FinishReason.ABORTED
    assert outputs["request"].num_output_tokens == 30
    assert engine.stats().num_preemptions == 0


def test_a_request_for_the_same_prompt_overtakes(make_engine: MakeEngine) -> None:
    prompt = make_prompt(96)
    engine = make_engine("llama", max_num_batched_tokens=100)
    engine.add(source("running", make_prompt(20, seed=1), SamplingParams(max_tokens=40, ignore_eos=True)))
    engine.step()
    engine.prefill(source("hint", prompt))
    engine.step()
    engine.add(source("request", prompt, SamplingParams(max_tokens=1)))
    outputs = drain(engine)
    assert outputs["hint"].finish is FinishReason.PREFILLED
    assert outputs["request"].num_cached_tokens == 48, "as uncalibrated engines guess, 55 tokens are nearly free"
    assert engine.stats().num_prefill_tokens == 20 + 55 + 48, "the half block was computed twice, the rest once"


def test_abort_and_a_failed_step(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = begun(make_engine)
    runner = engine._runner
    assert runner is not None
    with monkeypatch.context() as patched:
        patched.setattr(runner, "run", lambda *_: (_ for _ in ()).throw(MemoryError("no room")))
        with pytest.raises(MemoryError):
            engine.step()
    engine.check()
    assert drain(engine)["hint"].finish is FinishReason.PREFILLED
    engine.prefill(source("other", make_prompt(32, seed=1)))
    engine.step()
    engine.prefill(source("waiting", make_prompt(32, seed=2)))
    for name in ("other", "waiting"):
        engine.abort(name)
    assert {output.finish for output in drain(engine).values()} == {FinishReason.ABORTED}
    assert engine.stats().num_free_blocks == 8


@pytest.mark.parametrize("then", ["step", "abort", "close"])
def test_a_hint_that_gives_way_in_a_step_that_fails(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    engine = make_engine("llama", num_blocks=8, max_num_batched_tokens=16)
    engine.prefill(source("hint", make_prompt(64)))
    engine.step()
    engine.add(source("request", make_prompt(100, seed=1)))
    runner = engine._runner
    assert runner is not None
    with monkeypatch.context() as patched:
        patched.setattr(runner, "run", lambda *_: (_ for _ in ()).throw(MemoryError("no room")))
        with pytest.raises(MemoryError):
            engine.step()
    if then == "close":
        engine.close()
        return
    if then == "abort":
        engine.abort("hint")
    ended = drain(engine)
    assert ended["hint"].finish is FinishReason.ABORTED
    assert ended["request"].finish is FinishReason.LENGTH


def test_without_a_prefix_cache_nothing_is_computed_ahead(make_engine: MakeEngine) -> None:
    engine = make_engine("llama", enable_prefix_caching=False)
    engine.prefill(source("hint", make_prompt(64)))
    assert drain(engine)["hint"].finish is FinishReason.ABORTED
    assert engine.stats().num_prefill_tokens == 0


def test_too_many_and_unfit_hints_harm_nobody(make_engine: MakeEngine, caplog: pytest.LogCaptureFixture) -> None:
    engine = make_engine("llama")
    for index in range(prefill_ahead.MAX_WAITING + 1):
        engine.prefill(source(f"h{index}", make_prompt(32, seed=index)))
    engine.prefill(source("h0", make_prompt(32)))
    engine.prefill(source("unfit", (9999,)))
    with caplog.at_level(logging.WARNING):
        engine.retain("key", (PromptSegment("\ud800"),), "", 1.0)
    assert "nothing is retained for key" in caplog.text
    outputs = drain(engine)
    assert outputs[f"h{prefill_ahead.MAX_WAITING}"].finish is FinishReason.ABORTED
    assert outputs["unfit"].finish is FinishReason.INVALID
    reasons = [output.finish for output in outputs.values()]
    assert reasons.count(FinishReason.PREFILLED) == prefill_ahead.MAX_WAITING


def flood(engine: Engine) -> None:
    """Run so much else that nothing stays that is not retained."""
    for seed in range(10, 16):
        engine.add(source(f"flood {seed}", make_prompt(60, seed=seed)))
        drain(engine)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_retained_prefix_outlives_what_is_used_later(make_engine: MakeEngine, when: str) -> None:
    now_s = [100.0]
    prompt = make_prompt(49)
    segments = source("", prompt).segments
    engine = make_engine("llama", num_blocks=12, clock=lambda: now_s[0])

    def cached(name: str) -> int:
        engine.add(source(name, prompt))
        return drain(engine)[name].num_cached_tokens

    if when == "before":
        engine.retain("key", segments, "", 110.0)
    assert cached("a") == 0
    if when == "after":
        engine.retain("key", segments, "", 110.0)
    flood(engine)
    assert cached("b") == 48
    now_s[0] = 110.0
    flood(engine)
    assert cached("c") == 0, "the time is up"
    engine.retain("key", segments, "", 999.0)
    flood(engine)
    assert cached("d") == 48
    engine.release("key")
    engine.release("nobody")
    flood(engine)
    assert cached("e") == 0


def test_retained_blocks_hold_up_no_request_but_a_prefill(make_engine: MakeEngine) -> None:
    engine = make_engine("llama", num_blocks=8)
    engine.retain("key", source("", make_prompt(113)).segments, "", float("inf"))
    engine.add(source("first", make_prompt(113), SamplingParams(max_tokens=1)))
    drain(engine)
    engine.prefill(source("hint", make_prompt(32, seed=1)))
    assert drain(engine)["hint"].finish is FinishReason.ABORTED
    engine.add(source("second", make_prompt(100, seed=2)))
    assert drain(engine)["second"].finish is FinishReason.LENGTH
