"""The engine against transformers' own generate, token for token, however the work is cut and mixed."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from parrot_mq.messages import ObjectiveKind, SamplingParams
from parrot_workers.engine.engine import Engine
from parrot_workers.engine.port import FinishReason, PromptSegment, SequenceInput, SequenceOutput
from parrot_workers.worker.prompt import prefix_salt

KINDS = ["llama", "qwen3", "gpt2", "gemma2"]
MakeEngine = Callable[..., Engine]
Reference = Callable[[str], Any]
NUM_TOKENS = 20
GREEDY = SamplingParams(max_tokens=NUM_TOKENS, ignore_eos=True)
_expected: dict[tuple[str, tuple[int, ...]], list[int]] = {}


def make_prompts(count: int, *, shared: int = 0, seed: int = 0, longest: int = 60) -> list[list[int]]:
    """Prompts of random lengths; the first ``shared`` tokens are the same in all."""
    dice = random.Random(seed)
    head = [dice.randrange(3, 384) for _ in range(shared)]
    return [[0, *head, *(dice.randrange(3, 384) for _ in range(dice.randint(1, longest)))] for _ in range(count)]


def expected(reference: Reference, kind: str, prompt: Sequence[int]) -> list[int]:
    key = (kind, tuple(prompt))
    if key not in _expected:
        ids = torch.tensor([list(prompt)])
        answer = reference(kind).generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NUM_TOKENS, do_sample=False, eos_token_id=None,
            pad_token_id=0,
        )  # fmt: skip
        _expected[key] = answer[0, len(prompt) :].tolist()
    return _expected[key]


def add(engine: Engine, name: str, prompt: Sequence[int], sampling: SamplingParams = GREEDY, **more: Any) -> None:
    engine.add(SequenceInput(name, (PromptSegment("", token_ids=tuple(prompt)),), sampling, **more))


def drain(engine: Engine) -> dict[str, list[SequenceOutput]]:
    """Run ``engine`` until it is idle, its books checked after every step; return each sequence's outputs."""
    outputs: dict[str, list[SequenceOutput]] = {}
    while engine.has_work():
        for output in engine.step():
            outputs.setdefault(output.id, []).append(output)
        engine.check()
    return outputs


def tokens(outputs: list[SequenceOutput]) -> list[int]:
    return list(itertools.chain.from_iterable(output.token_ids for output in outputs))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [1, 2, 7, 32])
def test_greedy_equals_transformers(make_engine: MakeEngine, reference: Reference, kind: str, batch: int) -> None:
    prompts = make_prompts(batch)
    engine = make_engine(kind, max_num_seqs=32, num_blocks=400)
    for output, prompt in zip(engine.generate(prompts, GREEDY), prompts, strict=True):
        assert list(output.token_ids) == expected(reference, kind, prompt)
        assert output.finish is FinishReason.LENGTH
        assert (output.num_prompt_tokens, output.num_output_tokens) == (len(prompt), NUM_TOKENS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"max_num_batched_tokens": 12}, id="chunked prefill"),
        pytest.param({"num_blocks": 12}, id="preemption"),
        pytest.param({"num_blocks": 12, "max_num_batched_tokens": 9}, id="both"),
        pytest.param({"enable_prefix_caching": False}, id="no prefix cache"),
        pytest.param({"max_num_seqs": 2}, id="few at a time"),
    ],
)
def test_however_the_work_is_cut(
    make_engine: MakeEngine, reference: Reference, kind: str, settings: dict[str, Any]
) -> None:
    prompts = make_prompts(8, shared=35, seed=5, longest=50)
    engine = make_engine(kind, **settings)
    for turn in range(2):
        for index, prompt in enumerate(prompts):
            add(engine, f"{turn}-{index}", prompt)
        outputs = drain(engine)
        for index, prompt in enumerate(prompts):
            assert tokens(outputs[f"{turn}-{index}"]) == expected(reference, kind, prompt)
    stats = engine.stats()
    assert stats.num_free_blocks == stats.num_blocks
    assert (stats.num_running, stats.num_waiting) == (0, 0)
    assert (stats.num_preemptions > 0) == (settings.get("num_blocks") == 12)
    assert (stats.num_cached_tokens > 0) == settings.get("enable_prefix_caching", True)
    assert stats.num_generated_tokens == 2 * 8 * NUM_TOKENS


@pytest.mark.parametrize("kind", KINDS)
def test_without_the_fused_kernel(
    make_engine: MakeEngine, reference: Reference, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    # What a GPU runs, and a CPU for soft-capped scores.
    monkeypatch.setattr(importlib.import_module("parrot_kernels.paged_attention"), "_has_fused", lambda q, v: False)
    prompts = [*make_prompts(5, shared=35, seed=5, longest=50), *make_prompts(1, shared=90, seed=8, longest=40)]
    engine = make_engine(kind, max_num_batched_tokens=70)
    for output, prompt in zip(engine.generate(prompts, GREEDY), prompts, strict=True):
        assert list(output.token_ids) == expected(reference, kind, prompt)


@pytest.mark.parametrize("kind", KINDS)
def test_sequences_that_come_and_go(make_engine: MakeEngine, reference: Reference, kind: str) -> None:
    prompts = make_prompts(8, shared=35, seed=5, longest=50)
    engine = make_engine(kind, max_num_batched_tokens=40)
    outputs: dict[str, list[SequenceOutput]] = {}
    for index, prompt in enumerate(prompts):
        add(engine, str(index), prompt)
        for _ in range(3):
            for output in engine.step():
                outputs.setdefault(output.id, []).append(output)
    for name, rest in drain(engine).items():
        outputs.setdefault(name, []).extend(rest)
    for index, prompt in enumerate(prompts):
        assert tokens(outputs[str(index)]) == expected(reference, kind, prompt)


def test_sequences_of_one_step_share_their_prefix(make_engine: MakeEngine, reference: Reference) -> None:
    prompts = make_prompts(4, shared=63, seed=2)
    engine = make_engine("llama")
    outputs = engine.generate(prompts, GREEDY)
    assert [output.num_cached_tokens for output in outputs] == [0, 64, 64, 64]
    assert [list(output.token_ids) for output in outputs] == [expected(reference, "llama", p) for p in prompts]
    assert engine.stats().num_prefill_tokens == sum(map(len, prompts)) - 3 * 64


def test_tenants_do_not_share(make_engine: MakeEngine) -> None:
    engine = make_engine("llama")
    prompt = make_prompts(1, shared=40)[0]
    for index, salt in enumerate(["acme", "acme", "other"]):
        add(engine, str(index), prompt, salt=salt)
    outputs = drain(engine)
    assert [outputs[name][-1].num_cached_tokens > 0 for name in "012"] == [False, True, False]


@pytest.mark.parametrize("shares", [(False, False), (True, False), (False, True), (True, True)])
def test_tenants_share_what_is_computed_if_both_say_so(
    make_engine: MakeEngine, reference: Reference, shares: tuple[bool, bool]
) -> None:
    engine = make_engine("llama")
    prompt = make_prompts(1, shared=40)[0]
    outputs: dict[str, list[SequenceOutput]] = {}
    for tenant, share_prefixes in zip(("acme", "other"), shares, strict=True):
        add(engine, tenant, prompt, salt=prefix_salt(tenant, share_prefixes=share_prefixes))
        outputs |= drain(engine)
    assert (outputs["other"][-1].num_cached_tokens > 0) is all(shares)
    assert tokens(outputs["acme"]) == tokens(outputs["other"]) == expected(reference, "llama", prompt)


def test_bfloat16_runs_and_stays_near(make_engine: MakeEngine, reference: Reference) -> None:
    # Random weights meet near-ties, so that only the first tokens can be expected to agree.
    prompts = make_prompts(8, seed=4)
    outputs = make_engine("llama", dtype="bfloat16").generate(prompts, GREEDY)
    firsts = [
        output.token_ids[0] == expected(reference, "llama", p)[0] for output, p in zip(outputs, prompts, strict=True)
    ]
    assert sum(firsts) >= 6


@pytest.mark.parametrize("cut", [1, 7, 16, 19])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_forced_ids_continue_an_interrupted_output(make_engine: MakeEngine, cut: int, temperature: float) -> None:
    sampling = dataclasses.replace(GREEDY, temperature=temperature)
    prompt = make_prompts(1)[0]
    engine = make_engine("llama")
    add(engine, "request", prompt, sampling)
    whole = drain(engine)["request"]
    add(engine, "request", prompt, sampling, forced_ids=tuple(tokens(whole)[:cut]))
    first, *rest = drain(engine)["request"]
    assert first.token_ids == tuple(tokens(whole)[:cut])
    assert first.num_output_tokens == cut
    assert tokens([first, *rest]) == tokens(whole)
    assert "".join(output.text for output in [first, *rest]) == whole[-1].full_text
    last, before = rest[-1], whole[-1]
    assert (last.full_text, last.full_token_ids, last.finish) == (
        before.full_text,
        before.full_token_ids,
        before.finish,
    )


def test_forced_ids_that_end_the_output(make_engine: MakeEngine) -> None:
    engine = make_engine("llama")
    prompt, eos = make_prompts(1)[0], 1
    add(engine, "end", prompt, SamplingParams(max_tokens=9), forced_ids=(70, 71, eos))
    add(engine, "full", prompt, SamplingParams(max_tokens=2), forced_ids=(70, 71))
    add(engine, "more", prompt, SamplingParams(max_tokens=1), forced_ids=(70, 71))
    outputs = drain(engine)
    assert {name: len(parts) for name, parts in outputs.items()} == {"end": 1, "full": 1, "more": 1}
    assert outputs["end"][0].finish is FinishReason.STOP
    assert outputs["end"][0].full_token_ids == (70, 71)
    assert outputs["full"][0].finish is FinishReason.LENGTH
    assert outputs["more"][0].token_ids == (70,)
    assert engine.stats().num_generated_tokens == 0


def test_abort_ends_a_sequence_within_one_step(make_engine: MakeEngine, reference: Reference) -> None:
    prompts = make_prompts(3, seed=3)
    engine = make_engine("llama", max_num_seqs=2)
    for name, prompt in zip("abc", prompts, strict=True):
        add(engine, name, prompt)
    outputs = engine.step() + engine.step()
    engine.abort("a")
    engine.abort("c")
    engine.abort("nobody")
    ended = {output.id: output for output in engine.step() if output.finish is not None}
    assert {name: output.finish for name, output in ended.items()} == dict.fromkeys("ac", FinishReason.ABORTED)
    assert ended["a"].num_output_tokens == 2
    assert ended["a"].full_text == "".join(o.text for o in [*outputs, ended["a"]] if o.id == "a")
    rest = drain(engine)
    assert rest.keys() == {"b"}
    assert engine.stats().num_free_blocks == engine.stats().num_blocks


def test_strict_objectives_start_first_then_rank_then_age(make_engine: MakeEngine) -> None:
    engine = make_engine("llama", max_num_seqs=1)
    prompt = make_prompts(1)[0]
    short = SamplingParams(max_tokens=1)
    add(engine, "bulk", prompt, short, objective=ObjectiveKind.THROUGHPUT)
    add(engine, "late", prompt, short, rank=2.0)
    add(engine, "old", prompt, short, rank=1.0)
    add(engine, "young", prompt, short, rank=1.0)
    add(engine, "due", prompt, short, objective=ObjectiveKind.DEADLINE, rank=9.0)
    assert list(drain(engine)) == ["due", "old", "young", "late", "bulk"]


def test_a_failed_step_loses_nothing(
    make_engine: MakeEngine, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = make_prompts(4, shared=40, seed=6)
    engine = make_engine("llama")
    for index, prompt in enumerate(prompts):
        add(engine, str(index), prompt)
    assert engine._runner is not None
    forward = engine._runner.model.forward
    calls = itertools.count()

    def flaky(*args: Any) -> torch.Tensor:
        if next(calls) in (0, 3, 4):
            raise MemoryError("no room")
        return forward(*args)

    monkeypatch.setattr(engine._runner.model, "forward", flaky)
    outputs: dict[str, list[int]] = {}
    failures = 0
    while engine.has_work():
        try:
            for output in engine.step():
                outputs.setdefault(output.id, []).extend(output.token_ids)
        except MemoryError:
            failures += 1
        engine.check()
    assert failures == 3
    assert [outputs[str(index)] for index in range(4)] == [expected(reference, "llama", p) for p in prompts]


def test_close_frees_and_is_idempotent(make_engine: MakeEngine) -> None:
    engine = make_engine("llama")
    add(engine, "a", [0, 5])
    engine.step()
    engine.close()
    engine.close()
    assert not engine.has_work()
    assert engine.step() == []
