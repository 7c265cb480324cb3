"""What steps report: sizes and times, as a callback, a log and a profiler's trace."""

from __future__ import annotations

import itertools
from pathlib import Path

import orjson
import pytest

from parrot_mq.errors import ConfigError
from parrot_mq.messages import SamplingParams
from parrot_workers.engine.port import PromptSegment, SequenceInput
from parrot_workers.engine.step_log import StepLog
from parrot_workers.engine.step_profiler import StepProfiler
from parrot_workers.engine.step_stats import Phase, StepStats
from tests.engine.test_engine import GREEDY, NUM_TOKENS, MakeEngine, make_prompts


@pytest.mark.parametrize("run_ahead", [False, True])
def test_steps_add_up(make_engine: MakeEngine, run_ahead: bool) -> None:
    steps: list[StepStats] = []
    engine = make_engine("llama", max_num_batched_tokens=64, run_ahead=run_ahead, on_step=steps.append)
    prompts = make_prompts(4, shared=63, seed=2)
    for _ in range(2):
        engine.generate(prompts, GREEDY)
    total = engine.stats()
    assert len(steps) == total.num_steps
    for name in (
        "num_cached_tokens", "num_generated_tokens", "num_draft_tokens", "num_accepted_tokens", "num_ahead_steps",
        "num_discarded_tokens",
    ):  # fmt: skip
        assert sum(getattr(step.counts, name) for step in steps) == getattr(total, name), name
    assert sum(step.counts.num_generated_tokens for step in steps) == 2 * 4 * NUM_TOKENS
    computed = sum(step.counts.num_prefill_tokens + step.counts.num_decode_tokens for step in steps)
    assert computed + total.num_cached_tokens == 2 * sum(len(prompt) + NUM_TOKENS - 1 for prompt in prompts)
    assert (total.num_ahead_steps > 0) == run_ahead
    assert max(step.num_running for step in steps) == 4
    assert all(step.counts.num_prefill_tokens + step.counts.num_decode_tokens <= 64 for step in steps)


@pytest.mark.parametrize("run_ahead", [False, True])
def test_times_of_all_phases_are_measured(make_engine: MakeEngine, run_ahead: bool) -> None:
    steps: list[StepStats] = []
    make_engine("llama", run_ahead=run_ahead, on_step=steps.append).generate(make_prompts(2), GREEDY)
    assert all(set(step.seconds) == set(Phase) for step in steps)
    assert all(seconds > 0 for step in steps for seconds in step.seconds.values())


@pytest.mark.parametrize("run_ahead", [False, True])
def test_an_observer_that_fails_costs_no_output(make_engine: MakeEngine, run_ahead: bool) -> None:
    calls = itertools.count()

    def observe(_: StepStats) -> None:
        if next(calls) in (0, 2):
            raise OSError("no space left")

    engine = make_engine("llama", run_ahead=run_ahead, on_step=observe)
    engine.add(SequenceInput("s", (PromptSegment("hello"),), SamplingParams(max_tokens=5, ignore_eos=True)))
    token_ids: list[int] = []
    failures = 0
    while engine.has_work():
        try:
            token_ids += [token_id for output in engine.step() for token_id in output.token_ids]
        except OSError:
            failures += 1
    assert failures == 2
    [alone] = make_engine("llama").generate("hello", SamplingParams(max_tokens=5, ignore_eos=True))
    assert tuple(token_ids) == alone.token_ids


def test_the_log_has_a_line_for_each_step(make_engine: MakeEngine, tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    engine = make_engine("llama", on_step=StepLog(path))
    engine.generate(make_prompts(3), GREEDY)
    lines = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    assert len(lines) == engine.stats().num_steps
    assert sum(line["num_generated_tokens"] for line in lines) == 3 * NUM_TOKENS
    assert all(line["time_s"] > 0 and line["model_s"] > 0 for line in lines)


@pytest.mark.parametrize("run_ahead", [False, True])
def test_a_trace_names_the_phases(make_engine: MakeEngine, tmp_path: Path, run_ahead: bool) -> None:
    engine = make_engine("llama", profile=tmp_path / "new" / "folder", run_ahead=run_ahead)
    engine.generate(make_prompts(2), SamplingParams(max_tokens=80, ignore_eos=True))
    engine.close()
    (trace,) = (tmp_path / "new" / "folder").glob("steps-*.json")
    names = [event.get("name") for event in orjson.loads(trace.read_bytes())["traceEvents"]]
    assert {name: names.count(name) for name in Phase} == dict.fromkeys(Phase, 50)


def test_a_trace_of_fewer_steps_is_written_at_the_end(make_engine: MakeEngine, tmp_path: Path) -> None:
    engine = make_engine("llama", profile=tmp_path)
    engine.generate(make_prompts(1), SamplingParams(max_tokens=9, ignore_eos=True))
    assert not list(tmp_path.glob("steps-*.json"))
    engine.close()
    engine.close()
    (trace,) = tmp_path.glob("steps-*.json")
    assert Phase.MODEL in [event.get("name") for event in orjson.loads(trace.read_bytes())["traceEvents"]]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"step log .* cannot be written"):
        StepLog(tmp_path)
    with pytest.raises(ConfigError, match=r"profile folder .* cannot be made"):
        StepProfiler(tmp_path / "file" / "folder")
