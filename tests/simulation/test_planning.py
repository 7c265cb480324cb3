"""``parrot-mq simulate``: which engines a load needs."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import pytest

from parrot_mq.errors import ConfigError
from parrot_workers.simulation import EngineSetup, Profile
from parrot_workers.simulation.__main__ import engine_counts, main
from parrot_workers.simulation.planning.capacity import Goal, Outcome, Spread, measure, smallest
from parrot_workers.simulation.planning.drawn import draw_arrivals
from parrot_workers.simulation.planning.report import table, verdict
from parrot_workers.simulation.planning.workload import (
    Chain,
    Chat,
    MapReduce,
    SharedPrompt,
    Workload,
    load_workload,
    workload_names,
)

Capture = pytest.CaptureFixture[str]
SMALL = {
    "arrivals_per_s": 2.0,
    "num_applications": 4,
    "applications": [
        {"shape": "shared-prompt", "shared_tokens": 200, "query_tokens": [5, 20], "output_tokens": [10, 30]},
        {"shape": "chain", "steps": 2, "chunk_tokens": 50, "output_tokens": 5, "objective": "throughput"},
    ],
}


@pytest.fixture
def small(tmp_path: Path) -> str:
    """A file that describes a load of a few seconds."""
    path = tmp_path / "small.json"
    path.write_text(json.dumps(SMALL))
    return str(path)


def outcome(num_engines: int, p95_s: float, tpot_ms: float = 20.0) -> Outcome:
    return Outcome(num_engines, Spread(1.0, p95_s), Spread(0.1, 0.2), Spread(10.0, tpot_ms), 0.5, 99.0, 0.3, 2.0, 60, 9)


def run(arguments: list[str], capsys: Capture) -> str:
    assert main(arguments) == 0
    return capsys.readouterr().out


def test_the_same_seed_gives_the_same_json_and_another_one_another(small: str, capsys: Capture) -> None:
    first, again, other = (
        run([small, "--engines", "1,2", "--json", "--seed", seed], capsys) for seed in ("1", "1", "2")
    )
    assert first == again
    assert first != other
    answer = json.loads(first)
    assert [each["num_engines"] for each in answer["outcomes"]] == [1, 2]
    assert answer["outcomes"][0]["num_answers"] == 4
    assert answer["smallest"] is None
    assert answer["workload"]["name"] == "small"


def test_the_smallest_number_that_is_good_enough_is_named(small: str, capsys: Capture) -> None:
    lines = run([small, "--engines", "1-2", "--p95-s", "1000"], capsys)
    assert "1 engine reaches the goal." in lines
    lines = run([small, "--engines", "1", "--tpot-p95-ms", "0.001"], capsys)
    assert "per token p95" in lines
    assert "None of these numbers of engines reaches the goal" in lines


def test_more_engines_serve_more(profile: Profile) -> None:
    workload = load_workload("map-reduce")
    arrivals = draw_arrivals(Workload(arrivals_per_s=2.0, num_applications=6, applications=workload.applications), 0)
    one, three = (measure(arrivals, EngineSetup(profile), count, seed=0, real_limit_s=60) for count in (1, 3))
    assert three.latency_s.p95 < 0.7 * one.latency_s.p95
    assert 0 < three.utilisation <= 1
    assert one.num_answers == three.num_answers == 6
    tokens = 6 * (16 * 50 + 100)
    assert one.output_tokens_per_s * one.span_s == pytest.approx(tokens)


@pytest.mark.parametrize(
    ("described", "answers", "tokens"),
    [
        (Chain(shape="chain", steps=3, chunk_tokens=20, output_tokens=7), 1, 21),
        (MapReduce(shape="map-reduce", maps=4, chunk_tokens=20, output_tokens=7, reduce_output_tokens=9), 1, 37),
        (Chat(shape="chat", turns=3, system_tokens=9, user_tokens=5, output_tokens=7, think_s=100.0), 3, 21),
        (SharedPrompt(shape="shared-prompt", shared_tokens=40, query_tokens=5, output_tokens=7), 1, 7),
    ],
)
def test_every_shape(profile: Profile, described: Any, answers: int, tokens: int) -> None:
    arrivals = draw_arrivals(Workload(arrivals_per_s=1.0, num_applications=2, applications=[described]), 3)
    found = measure(arrivals, EngineSetup(profile), 1, seed=3, real_limit_s=60)
    assert found.num_answers == 2 * answers
    assert found.output_tokens_per_s * found.span_s == pytest.approx(2 * tokens)
    assert found.tpot_ms.p50 == pytest.approx(20.5, rel=0.1)
    assert found.ttft_s.p50 < found.latency_s.p50
    if isinstance(described, Chat):
        assert found.span_s > 200
        assert found.cached_share > 0


def test_arrivals_are_drawn_as_described() -> None:
    workload = load_workload("mixed")
    arrivals = draw_arrivals(workload, 5)
    assert arrivals == draw_arrivals(workload, 5)
    assert len(arrivals) == workload.num_applications
    chats = [arrival for arrival in arrivals if isinstance(arrival.application, Chat)]
    assert len(chats) / len(arrivals) == pytest.approx(5 / 6, abs=0.15)
    assert arrivals[-1].at_s == pytest.approx(len(arrivals) / workload.arrivals_per_s, rel=0.4)
    assert all(60 <= part.output_tokens <= 200 for chat in chats for part in chat.parts)
    assert {len(part.text) % 4 for arrival in arrivals for part in arrival.parts} == {0}


def test_built_in_workloads_can_be_loaded() -> None:
    assert workload_names() == ["chain", "chat", "map-reduce", "mixed", "shared-prompt"]
    for name in workload_names():
        assert load_workload(name).name == name


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"arrivals_per_s": 0}, "arrivals_per_s: Input should be greater than 0"),
        ({"applications": []}, "applications: List should have at least 1 item"),
        ({"applications": [{"shape": "tree"}]}, "applications.0: Input tag 'tree'"),
        ({"applications": [{"shape": "chain", "step": 3}]}, "applications.0.chain.step: Unexpected keyword"),
        ({"applications": [{"shape": "chain", "steps": 0}]}, "applications.0.chain.steps"),
        ({"applications": [{"shape": "chat", "user_tokens": [9, 3]}]}, "[9, 3] is not [least, most]"),
        ({"unknown": 1}, "unknown: Unexpected keyword argument"),
    ],
)
def test_what_is_wrong_with_a_description_is_named(
    tmp_path: Path, change: dict[str, Any], problem: str, capsys: Capture
) -> None:
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(SMALL | change))
    assert main([str(path)]) == 2
    assert problem in capsys.readouterr().err


def test_files_that_cannot_be_read_and_names_that_do_not_exist(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "bad.toml").write_text("arrivals_per_s = ")
    assert main([str(tmp_path / "bad.toml")]) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert main(["nothing"]) == 2
    assert "chain, chat, map-reduce, mixed, shared-prompt" in capsys.readouterr().err
    assert main(["chat", "--profile", "abacus"]) == 2
    assert "no profile 'abacus'" in capsys.readouterr().err


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lupa" else find_spec(name))
    assert main(["chat"]) == 2
    assert capsys.readouterr().err == "error: a simulation needs lupa: pip install 'parrot-mq[sim]'\n"


def test_numbers_of_engines() -> None:
    assert engine_counts("4") == [4]
    assert engine_counts("1-3, 8,2") == [1, 2, 3, 8]
    for text in ("", "0", "3-1", "a", "1--2", "1000", "-1"):
        with pytest.raises(ConfigError, match="--engines"):
            engine_counts(text)


def test_goals() -> None:
    outcomes = [outcome(1, 9.0), outcome(2, 5.0, tpot_ms=50.0), outcome(4, 4.0)]
    assert smallest(outcomes, Goal(p95_s=5.0)) == 2
    assert smallest(outcomes, Goal(p95_s=5.0, tpot_p95_ms=30)) == 4
    assert smallest(outcomes, Goal(p50_s=0.5)) is None
    assert smallest(outcomes, Goal()) is None
    assert Goal(p95_s=5.0, tpot_p95_ms=30).misses(outcomes[1]) == ("tpot_p95_ms",)
    assert Goal(tpot_p95_ms=30).misses(outcome(1, 1.0, tpot_ms=math.nan)) == ("tpot_p95_ms",)
    text = table(outcomes, Goal(p95_s=5.0))
    assert [line.split()[0] for line in text.splitlines()] == ["engines", "1", "2", "4"]
    assert "latency p95" in text.splitlines()[1]
    assert verdict(outcomes, Goal(p95_s=5.0)) == "2 engines reach the goal."
    assert "No goal was given" in verdict(outcomes, Goal())


def test_distributions_take_the_nearest_rank() -> None:
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 3.0)
    assert Spread.of(float(n) for n in range(1, 101)) == Spread(50.0, 95.0)
    assert math.isnan(Spread.of([]).p50)
