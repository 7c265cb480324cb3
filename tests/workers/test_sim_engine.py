"""The simulated engine: deterministic text, batching, blocks, costs."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parrot_mq.messages import CostModel, ObjectiveKind, SamplingParams
from parrot_workers.engine.port import EnginePort, FinishReason, PromptSegment, SequenceInput, SequenceOutput
from parrot_workers.sim import InstantClock, RealClock, SimEngine
from parrot_workers.sim.content import count_tokens
from parrot_workers.sim.script import write_script


def sequence(
    name: str, prompt: str, *, rank: float = 0, forced: tuple[int, ...] = (), **sampling: Any
) -> SequenceInput:
    segments = (PromptSegment(prompt),)
    return SequenceInput(name, segments, SamplingParams(**sampling), rank=rank, forced_ids=forced)


def run(engine: EnginePort, *sequences: SequenceInput) -> dict[str, list[SequenceOutput]]:
    for one in sequences:
        engine.add(one)
    outputs: dict[str, list[SequenceOutput]] = {one.id: [] for one in sequences}
    while engine.has_work():
        for output in engine.step():
            outputs[output.id].append(output)
    return outputs


def instant(**options: Any) -> SimEngine:
    return SimEngine(clock=InstantClock(), **options)


def test_the_text_depends_on_prompt_and_seed_alone() -> None:
    alone = run(instant(), sequence("a", "Tell me", max_tokens=20))["a"][-1]
    batch = run(instant(), *[sequence(str(n), "Tell me", max_tokens=20) for n in range(5)])
    assert {outputs[-1].full_text for outputs in batch.values()} == {alone.full_text}
    assert len(alone.full_text.split()) == 20
    other = run(instant(), sequence("a", "Tell me", max_tokens=20, seed=1))["a"][-1]
    assert other.full_text != alone.full_text
    assert run(instant(), sequence("a", "Tell you", max_tokens=20))["a"][-1].full_text != alone.full_text


@pytest.mark.parametrize("num_tokens", [1, 2, 7, 100])
def test_an_output_counts_its_tokens_in_the_prompt_that_reads_it(num_tokens: int) -> None:
    script = write_script("Tell me", SamplingParams(max_tokens=num_tokens), 0, 1000)
    assert len(script.token_ids) == count_tokens(script.text) == num_tokens


def test_the_text_is_the_same_in_every_process() -> None:
    script = (
        "from parrot_mq.messages import SamplingParams\n"
        "from parrot_workers.sim.script import write_script\n"
        "print(write_script('Tell me', SamplingParams(max_tokens=9), 0, 100).text)\n"
    )
    path = "import sys; sys.path[:0] = ['.', 'workers']\n"
    told = {
        subprocess.run(
            [sys.executable, "-c", path + script],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in "12"
    }
    assert told == {write_script("Tell me", SamplingParams(max_tokens=9), 0, 100).text + "\n"}


def test_outputs_add_up() -> None:
    outputs = run(instant(), sequence("a", "Tell me", max_tokens=7))["a"]
    last = outputs[-1]
    assert "".join(output.text for output in outputs) == last.full_text
    assert tuple(i for output in outputs for i in output.token_ids) == last.full_token_ids
    assert last.finish is FinishReason.LENGTH
    assert (last.num_prompt_tokens, last.num_output_tokens) == (2, 7)
    assert [output.finish for output in outputs[:-1]] == [None] * 6


def test_forced_tokens_come_first_in_an_output_of_their_own() -> None:
    whole = run(instant(), sequence("a", "Tell me", max_tokens=7))["a"]
    ids = whole[-1].full_token_ids
    for count in range(1, 8):
        first, *rest = run(instant(), sequence("a", "Tell me", max_tokens=7, forced=ids[:count]))["a"]
        assert first.token_ids == ids[:count]
        assert first.text == "".join(output.text for output in whole[:count])
        assert tuple(i for output in rest for i in output.token_ids) == ids[count:]
        assert first.text + "".join(output.text for output in rest) == whole[-1].full_text
        assert (rest[-1].full_text, rest[-1].num_output_tokens) == (whole[-1].full_text, 7)


def test_echo_says_what_stands_behind_it() -> None:
    output = run(instant(), sequence("a", "an echo:old one echo:  two\nlines ", max_tokens=9))["a"][-1]
    assert (output.full_text, output.finish) == ("  two\nlines ", FinishReason.STOP)
    assert run(instant(), sequence("a", "echo:one two", max_tokens=1))["a"][-1].full_text == "one"
    nothing = run(instant(), sequence("a", "echo:"))["a"][-1]
    assert (nothing.full_text, nothing.finish) == ("", FinishReason.STOP)


def test_lengths_are_drawn_around_the_mean() -> None:
    engine = instant(mean_output_tokens=20)
    outputs = run(engine, *[sequence(str(n), f"prompt {n}", max_tokens=1000) for n in range(200)])
    lengths = [each[-1].num_output_tokens for each in outputs.values()]
    assert 10 < sum(lengths) / len(lengths) < 30
    assert len(set(lengths)) > 20
    fixed = run(instant(mean_output_tokens=20), sequence("a", "x", max_tokens=50, ignore_eos=True))["a"][-1]
    assert fixed.num_output_tokens == 50
    least = run(instant(mean_output_tokens=1), sequence("a", "x", max_tokens=50, min_tokens=30))["a"][-1]
    assert least.num_output_tokens >= 30


def test_min_tokens_holds_stop_strings_off() -> None:
    outputs = run(instant(), sequence("a", "echo:stop go stop go", stop=("stop",), min_tokens=2, max_tokens=9))["a"]
    assert outputs[-1].full_text == "stop go "
    assert outputs[-1].full_token_ids == ()


@given(
    words=st.lists(st.text("abx ", min_size=1, max_size=4), max_size=12),
    stops=st.lists(st.text("abx ", min_size=1, max_size=4), max_size=3),
)
def test_stop_strings_are_exact_and_never_leak(words: list[str], stops: list[str]) -> None:
    text = "".join(words)
    outputs = run(instant(), sequence("a", "echo:" + text, stop=tuple(stops), max_tokens=1000))["a"]
    cuts = [text.find(stop) for stop in stops if stop in text]
    said = outputs[-1].full_text
    assert "".join(output.text for output in outputs) == said
    assert not any(stop in said for stop in stops)
    if not cuts:
        assert said == text
    else:
        # Tokens come one by one, so the stop string that is complete first cuts; it need not begin first.
        assert text.startswith(said)
        assert any(text[len(said) :].startswith(stop) for stop in stops)


def test_the_lowest_rank_is_admitted_first_and_max_num_seqs_holds() -> None:
    engine = instant(max_num_seqs=2)
    for rank in (3, 1, 2, 0):
        engine.add(sequence(str(rank), "x", rank=rank, max_tokens=3))
    assert {output.id for output in engine.step()} == {"0", "1"}
    assert (engine.stats().num_running, engine.stats().num_waiting) == (2, 2)
    finished = [o.id for _ in range(9) for o in engine.step() if o.finish]
    assert finished == ["0", "1", "2", "3"]


def test_blocks_bound_admission_and_come_back() -> None:
    engine = instant(num_blocks=4, block_size=16)
    for name in "abc":
        engine.add(sequence(name, "x" * 40, max_tokens=20))  # 10 + 20 tokens: two blocks
    engine.step()
    assert (engine.stats().num_running, engine.stats().num_free_blocks) == (2, 0)
    engine.abort("a")
    engine.step()
    assert engine.stats().num_running == 2
    while engine.has_work():
        engine.step()
    assert engine.stats().num_free_blocks == 4


def test_what_can_never_run_is_invalid() -> None:
    engine = instant(max_model_len=10)
    output = run(engine, sequence("a", "y" * 100))["a"][-1]
    assert (output.finish, output.num_prompt_tokens) == (FinishReason.INVALID, 25)
    assert "25 tokens" in output.error
    assert "takes 9" in output.error
    output = run(instant(num_blocks=2), sequence("a", "y", max_tokens=100))["a"][-1]
    assert output.finish is FinishReason.INVALID
    assert "7 blocks" in output.error


def test_output_stops_at_the_models_length() -> None:
    output = run(instant(max_model_len=10), sequence("a", "y" * 16, max_tokens=100))["a"][-1]
    assert (output.num_output_tokens, output.finish) == (6, FinishReason.LENGTH)


def test_abort_ends_running_and_waiting_sequences() -> None:
    engine = instant(max_num_seqs=1)
    engine.add(sequence("running", "x"))
    engine.add(sequence("waiting", "x"))
    engine.step()
    for name in ("running", "waiting", "unknown"):
        engine.abort(name)
    assert [(o.id, o.finish) for o in engine.step()] == [
        ("running", FinishReason.ABORTED),
        ("waiting", FinishReason.ABORTED),
    ]
    assert not engine.has_work()
    assert engine.step() == []


def test_costs_follow_the_model_and_cached_prefixes_are_free() -> None:
    clock = InstantClock()
    cost = CostModel(
        prefill_per_token_ms=1.0, decode_base_ms=10.0, decode_per_seq_ms=2.0, decode_per_context_token_ms=0.0
    )
    engine = SimEngine(cost=cost, clock=clock)
    prompt = "z" * 4 * 32
    run(engine, sequence("a", prompt, max_tokens=3))
    assert clock.elapsed_ms == 32 + 2 * 12  # the first token comes with the prompt
    cached = run(engine, sequence("b", prompt + "z" * 4 * 8, max_tokens=1))["b"][-1]
    assert cached.num_cached_tokens == 32
    assert clock.elapsed_ms == 32 + 2 * 12 + 10  # 8 tokens of prompt: the weights are read for longer
    assert engine.stats().num_cached_tokens == 32
    assert engine.stats().num_prefill_tokens == 40
    assert engine.totals.num_decoded == 2


def test_a_step_that_prefills_and_decodes_takes_less_than_both() -> None:
    clock = InstantClock()
    engine = SimEngine(cost=CostModel(0.1, 20.0, 0.5, overlap=0.9), clock=clock)
    engine.add(sequence("a", "a" * 4 * 16, max_tokens=100))
    engine.step()
    engine.add(sequence("b", "b" * 4 * 400, max_tokens=100))
    before_ms = clock.elapsed_ms
    engine.step()
    assert clock.elapsed_ms - before_ms == pytest.approx(40 + 20.5 - 0.9 * 20)


def test_an_engine_whose_announced_cost_is_wrong_says_so() -> None:
    announced, true = CostModel(0.1, 10.0, 0.5, 0.001), CostModel(0.2, 20.0, 1.0, 0.002)
    clock = InstantClock()
    engine = SimEngine(cost=announced, true_cost=true, clock=clock)
    assert engine.stats().cost == announced
    for number in range(4):
        run(engine, *[sequence(f"{number}-{i}", f"{number}{i}" * 2000, max_tokens=20) for i in range(8)])
    learned = engine.stats().cost
    assert learned is not None
    assert engine.spec.cost == announced
    assert learned.decode_step_ms(8, 4000) == pytest.approx(true.decode_step_ms(8, 4000), rel=0.1)
    assert learned.prefill_ms(1000) == pytest.approx(true.prefill_ms(1000), rel=0.1)


def test_long_prompts_are_prefilled_in_parts() -> None:
    engine = instant()
    engine.add(sequence("a", "w" * 4 * 5000, max_tokens=1))
    assert engine.step() == []
    assert engine.step() == []
    assert engine.step()[0].finish is FinishReason.LENGTH


def cached_tokens(engine: SimEngine, prompt: str, salt: str = "") -> int:
    given = SequenceInput("probe", (PromptSegment(prompt),), SamplingParams(max_tokens=1), salt=salt)
    return run(engine, given)["probe"][-1].num_cached_tokens


def test_the_prefix_cache_separates_tenants_and_forgets_the_oldest() -> None:
    engine = instant(block_size=1, num_blocks=8)
    assert cached_tokens(engine, "aaaabbbbcccc", "acme") == 0
    assert cached_tokens(engine, "aaaabbbbcccc", "acme") == 2  # never the last token
    assert cached_tokens(engine, "aaaabbbb", "other") == 0
    assert cached_tokens(engine, "aaaabbbb", "other") == 1
    assert cached_tokens(engine, "ddddeeeeffffgggg", "acme") == 0  # takes the place of the oldest
    assert cached_tokens(engine, "aaaabbbbcccc", "acme") < 2
    engine.check()


def test_without_a_prefix_cache_nothing_is_found_again_or_shared() -> None:
    engine = instant(enable_prefix_caching=False)
    prompt = "p" * 4 * 64
    assert cached_tokens(engine, prompt) == cached_tokens(engine, prompt) == 0
    run(engine, *[sequence(str(n), prompt, max_tokens=5) for n in range(4)])
    assert engine.totals.num_shared_tokens == 0


def test_generated_tokens_are_found_again_by_their_ids() -> None:
    engine = instant()
    said = run(engine, sequence("a", "q" * 4 * 16, max_tokens=33))["a"][-1]
    segments = (PromptSegment("q" * 4 * 16), PromptSegment(said.full_text, True, said.full_token_ids))
    again = run(engine, SequenceInput("b", segments, SamplingParams(max_tokens=1)))["b"][-1]
    assert again.num_prompt_tokens == 16 + 33
    assert again.num_cached_tokens == 16 + 32


def test_sequences_that_share_a_prefix_read_and_hold_it_once() -> None:
    engine = instant(num_blocks=100)
    steps: list[Any] = []
    engine.on_step = lambda work, took_ms: steps.append(work)
    shared = "s" * 4 * 64
    for n in range(3):
        engine.add(sequence(str(n), shared + f"{n}" * 4 * 16, max_tokens=17))
    engine.step()
    # 4 blocks in common; 1 of its own prompt and 2 for the output of each
    assert engine.stats().num_free_blocks == 100 - 4 - 3 * 3
    engine.step()
    assert steps[0].num_prefill_tokens == 80 + 16 + 16
    assert (steps[1].num_decoding, steps[1].context_tokens, steps[1].shared_tokens) == (3, 3 * 81, 2 * 64)
    engine.check()
    engine.abort("1")
    engine.step()
    assert (steps[2].context_tokens, steps[2].shared_tokens) == (2 * 82, 64)
    while engine.has_work():
        engine.step()
    engine.check()


def test_the_sum_of_running_tokens_is_bounded() -> None:
    engine = instant(max_running_tokens=100)
    for name in "abc":
        engine.add(sequence(name, name * 4 * 30, max_tokens=20))
    engine.step()
    assert (engine.stats().num_running, engine.stats().num_waiting) == (2, 1)
    whole = run(instant(max_running_tokens=100), sequence("long", "x" * 4 * 200, max_tokens=5))["long"][-1]
    assert whole.finish is FinishReason.LENGTH  # alone, what exceeds the bound runs all the same


def hint(name: str, prompt: str) -> SequenceInput:
    return SequenceInput(name, (PromptSegment(prompt),), SamplingParams())


def test_a_prompt_is_computed_ahead_where_nothing_else_runs() -> None:
    clock = InstantClock()
    engine = SimEngine(cost=CostModel(1.0, 10.0, 0.0), clock=clock)
    engine.prefill(hint("h", "h" * 4 * 40))
    assert [(output.id, output.finish) for output in engine.step()] == [("h", FinishReason.PREFILLED)]
    assert clock.elapsed_ms == 32  # two full blocks
    assert cached_tokens(engine, "h" * 4 * 40) == 32
    assert engine.totals.num_ahead_tokens == 32
    engine.prefill(hint("again", "h" * 4 * 40))
    assert [output.finish for output in engine.step()] == [FinishReason.PREFILLED]
    assert engine.totals.num_ahead_tokens == 32
    assert not engine.has_work()
    engine.check()


def test_what_is_computed_ahead_hardly_holds_up_what_runs_and_gives_way_to_it() -> None:
    clock = InstantClock()
    cost = CostModel(0.1, 20.0, 0.5, overlap=0.9)
    engine = SimEngine(cost=cost, clock=clock, num_blocks=256, max_num_batched_tokens=1024)
    engine.add(sequence("a", "a" * 4 * 16, max_tokens=100))
    engine.step()
    engine.prefill(hint("h", "h" * 4 * 16 * 40))
    before_ms = clock.elapsed_ms
    assert [output.id for output in engine.step()] == ["a"]
    assert engine.totals.num_ahead_tokens >= 200, "what is computed while the weights are read"
    assert 20.5 < clock.elapsed_ms - before_ms <= 20.5 * 1.125
    engine.check()
    engine.add(sequence("b", "b" * 4 * 16, max_tokens=16 * 220))
    outputs = engine.step()
    assert ("h", FinishReason.ABORTED) in [(output.id, output.finish) for output in outputs]
    assert engine.stats().num_running == 2
    engine.check()


def test_what_is_computed_ahead_in_pieces_of_any_size_is_found_in_whole_blocks() -> None:
    """Nothing hides here, and an eighth of a step of 5.5 ms are 13 tokens."""
    engine = instant(cost=CostModel(0.05, 5.0, 0.5))
    engine.add(sequence("a", "a" * 4 * 16, max_tokens=100))
    engine.step()
    engine.prefill(hint("h", "h" * 4 * 70))
    for num_tokens in (13, 26, 39, 52, 64):
        assert ("h" in {output.id for output in engine.step()}) == (num_tokens == 64)
        assert engine.totals.num_ahead_tokens == num_tokens
        engine.check()
    engine.abort("a")
    engine.step()
    assert cached_tokens(engine, "h" * 4 * 70) == 64


def test_hints_are_bounded_and_can_be_taken_back() -> None:
    engine = instant()
    for n in range(70):
        engine.prefill(hint(str(n), f"{n:04}" * 32))
    engine.abort("3")
    ended = {output.id: output.finish for _ in range(70) for output in engine.step()}
    assert len(ended) == 70
    assert [name for name, finish in ended.items() if finish is FinishReason.ABORTED] == [*map(str, range(64, 70)), "3"]
    assert not engine.has_work()


def test_a_retained_prefix_outlasts_what_was_used_later() -> None:
    now_s = 0.0
    engine = instant(block_size=1, num_blocks=10, now_s=lambda: now_s)
    kept, other = "kkkk" * 4, "oooo" * 4

    def crowd() -> None:
        for n in range(3):
            cached_tokens(engine, f"{n}{n}{n}{n}" * 4 + "tail")
        engine.check()

    cached_tokens(engine, kept)
    cached_tokens(engine, other)
    engine.retain("key", (PromptSegment(kept),), "", 100.0)
    crowd()
    assert cached_tokens(engine, other) == 0
    assert cached_tokens(engine, kept) == 3
    engine.release("key")
    crowd()
    assert cached_tokens(engine, kept) == 0
    engine.retain("key", (PromptSegment(kept),), "", 200.0)
    now_s = 200.0
    crowd()
    assert cached_tokens(engine, kept) == 0


def test_members_of_a_task_group_are_admitted_together() -> None:
    engine = instant()
    engine.add(sequence("busy", "x", max_tokens=50))
    engine.step()

    def member(name: str) -> SequenceInput:
        segments = (PromptSegment("m" * 4 * 32 + name),)
        return SequenceInput(name, segments, SamplingParams(max_tokens=5), group="g", group_size=3)

    engine.add(member("1"))
    assert [output.id for output in engine.step()] == ["busy"]
    engine.add(member("2"))
    engine.add(member("3"))
    assert [output.id for output in engine.step()] == ["busy", "1", "2", "3"]
    engine.add(member("late"))
    for _ in range(2):
        engine.step()
    assert "late" in [output.id for output in engine.step()]


@given(st.data())
def test_the_books_agree_with_what_runs(data: st.DataObject) -> None:
    engine = instant(num_blocks=24, block_size=4, max_num_seqs=4, max_num_batched_tokens=24, max_running_tokens=80)
    prompts = st.lists(st.sampled_from(["aaaa" * 4, "bbbb" * 4, "cccc" * 8, "dd"]), min_size=1, max_size=3).map("".join)
    added: list[str] = []
    ended: list[str] = []
    for number in range(data.draw(st.integers(1, 25))):
        action = data.draw(st.sampled_from(["add", "add", "step", "step", "abort", "prefill", "retain", "release"]))
        name, prompt = str(number), data.draw(prompts)
        if action in ("add", "prefill"):
            given = SequenceInput(
                name,
                (PromptSegment(prompt),),
                SamplingParams(max_tokens=data.draw(st.integers(1, 12))),
                rank=data.draw(st.integers(0, 2)),
                group=data.draw(st.sampled_from(["", "g"])),
                group_size=2,
            )
            added.append(name)
            getattr(engine, action)(given)
        elif action == "step":
            ended += [output.id for output in engine.step() if output.finish]
        elif action == "abort" and added:
            engine.abort(data.draw(st.sampled_from(added)))
        elif action == "retain":
            engine.retain(data.draw(st.sampled_from("xy")), (PromptSegment(prompt),), "", 1e12)
        elif action == "release":
            engine.release(data.draw(st.sampled_from("xy")))
        engine.check()
    for _ in range(300):
        ended += [output.id for output in engine.step() if output.finish]
        engine.check()
    assert not engine.has_work()
    assert sorted(ended) == sorted(added)
    assert engine.stats().num_free_blocks == 24


def test_close_forgets_everything() -> None:
    engine = instant()
    engine.add(sequence("a", "x"))
    engine.step()
    engine.close()
    engine.close()
    assert not engine.has_work()
    assert engine.stats().num_free_blocks == engine.spec.num_blocks


def test_a_real_clock_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    RealClock(speed=10).spend(500)
    RealClock().spend(0)
    assert slept == [0.05]


def test_tokens_are_counted_in_bytes() -> None:
    assert [count_tokens(text) for text in ("", "a", "abcd", "ééé", "\ud800")] == [0, 1, 1, 2, 1]


@pytest.mark.parametrize(("objective", "num_steps"), [(ObjectiveKind.LATENCY, 5), (ObjectiveKind.THROUGHPUT, 1)])
def test_throughput_prompts_come_in_pieces_that_a_step_hides_beside_what_somebody_waits_for(
    objective: ObjectiveKind, num_steps: int
) -> None:
    """A hundred tokens take as long as reading the weights; a step that computes them takes 2 ms more than without."""
    engine = instant(cost=CostModel(0.2, 20.0, 0.0, overlap=0.9))
    took_ms: list[tuple[int, float]] = []
    engine.on_step = lambda work, ms: took_ms.append((work.num_prefill_tokens, round(ms, 6)))
    engine.add(dataclasses.replace(sequence("first", "a" * 16, max_tokens=50, ignore_eos=True), objective=objective))
    engine.step()
    work = sequence("work", "word" * 500, max_tokens=5, ignore_eos=True)
    engine.add(dataclasses.replace(work, objective=ObjectiveKind.THROUGHPUT))
    took_ms.clear()
    for _ in range(num_steps):
        engine.step()
    assert took_ms == ([(100, 22.0)] * 5 if num_steps > 1 else [(500, 102.0)])
    assert {"first", "work"} == set(engine.running)


def test_what_is_computed_ahead_gives_way_to_nobody_who_cannot_begin_yet() -> None:
    """A step hides a hundred tokens: while throughput work has them for one prompt, the next one is not admitted."""
    engine = instant(cost=CostModel(0.2, 20.0, 0.0, overlap=0.9), num_blocks=64)
    engine.add(sequence("first", "f" * 4 * 16, max_tokens=100, ignore_eos=True))
    engine.step()
    engine.prefill(hint("h", "h" * 4 * 16 * 15))
    engine.step()
    for name, num_tokens in (("long", 250), ("next", 400)):
        work = sequence(name, name[0] * 4 * num_tokens, max_tokens=5, ignore_eos=True)
        engine.add(dataclasses.replace(work, objective=ObjectiveKind.THROUGHPUT))
    for ended in ([], [], ["h"]):
        assert [output.id for output in engine.step() if output.finish is FinishReason.ABORTED] == ended
        engine.check()
    assert set(engine.running) == {"first", "long", "next"}
