"""``parrot-mq bench-engine``: figures of an engine, as a table and as JSON."""

from __future__ import annotations

import json

import pytest

from parrot_workers.bench.__main__ import main
from parrot_workers.bench.measure import EngineFault, Figures, Work, measure
from parrot_workers.sim import InstantClock, SimEngine

Capture = pytest.CaptureFixture[str]
SMALL = ["--batches", "1", "2", "--prompt-tokens", "40", "--shared-tokens", "32", "--output-tokens", "3"]


def test_json_has_a_row_for_each_batch_without_and_with_a_shared_prefix(capsys: Capture) -> None:
    assert main([*SMALL, "--rounds", "1", "--json", "--num-threads", "1", "--kv-memory-gib", "0.01"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert (result["model"], result["prompt_tokens"], result["output_tokens"]) == ("demo", 40, 3)
    assert 0 < result["resident_bytes_loaded"] <= result["resident_bytes_peak"]
    assert [(row["batch"], row["shared_tokens"]) for row in result["rows"]] == [(1, 0), (2, 0), (1, 32), (2, 32)]
    for row in result["rows"]:
        assert min(value for name, value in row.items() if name.endswith(("_per_s", "_ms"))) > 0
    assert captured.err.count("done") == 4


def test_the_table_is_for_people(capsys: Capture) -> None:
    assert main([*SMALL, "--rounds", "1", "--num-threads", "1", "--kv-memory-gib", "0.01"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("demo: prompts of 40 tokens, 3 of output")
    assert "KV cache for" in text
    assert len([line for line in text.splitlines() if line.split()[:1] in (["1"], ["2"])]) == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--shared-tokens", "40", "--prompt-tokens", "40"], "--shared-tokens 40 must be fewer"),
        (["--prompt-tokens", "5000"], "lower --prompt-tokens"),
        (["--model", "/no/such/folder"], "there is no folder"),
        (["--kind", "sim"], "kind torch"),
    ],
)
def test_what_cannot_be_measured_is_one_line(arguments: list[str], words: str, capsys: Capture) -> None:
    assert main([*arguments, "--num-threads", "1", "--kv-memory-gib", "0.01"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert words in err
    assert err.count("\n") == 1


def test_sizes_that_are_none_end_with_the_usage(capsys: Capture) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--batches", "0"])
    assert "0 is no number of at least 1" in capsys.readouterr().err


def test_figures_are_medians_of_the_rounds() -> None:
    rounds = [Figures(8, 0, 10.0 * n, 20.0 * n, 30.0 * n, 1.0 * n) for n in (3, 1, 2)]
    assert Figures.median(rounds) == Figures(8, 0, 20.0, 40.0, 60.0, 2.0)


def test_an_output_that_is_cut_short_is_no_measurement() -> None:
    engine = SimEngine(clock=InstantClock(), max_model_len=64)
    with pytest.raises(EngineFault, match="tokens came out, not 64"):
        list(measure(engine, Work(40, 32, 64, range(10)), [1], 1))
