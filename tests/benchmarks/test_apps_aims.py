"""Aims against each baseline, the floor that bounds them, and the reference's seconds."""

from __future__ import annotations

import pytest

from benchmarks.apps.aims import fit_table, floor_at, held, is_missed, reach_table
from benchmarks.apps.application import Function
from benchmarks.apps.bench import Outcome
from benchmarks.apps.experiments import EXPERIMENTS
from benchmarks.apps.floor import Draft, floor_of
from benchmarks.apps.reference import AIMS, THROUGHPUT, Aim
from benchmarks.apps.rows import Row, row_of
from benchmarks.apps.simulated import run_simulated
from benchmarks.apps.systems import ours
from benchmarks.apps.tables import by_key
from parrot_mq.messages import CostModel

COST = CostModel(prefill_per_token_ms=1, decode_base_ms=10, decode_per_seq_ms=2)


def row(system: str, seconds: float, point: str = "files=4, as run") -> Row:
    return row_of("multi-agent", point, "simulated", system, "", [Outcome(seconds)])


class TestHeld:
    LATENCY = Aim("multi-agent", "files=4, as run", 2.95)
    THROUGHPUT = Aim("multi-agent", "files=4, as run", 1.27, THROUGHPUT)

    def test_each_baseline_is_a_column(self) -> None:
        seconds = {
            "parrot_mq": 200.0, "latency-6144": 500.0, "throughput": 260.0, "latency+cache": 220.0,
            "throughput+cache": 210.0, "reference": 600.0, "reference-throughput": 250.0,
        }  # fmt: skip
        found = by_key([row(*pair) for pair in seconds.items()])
        ratios = [[one.ratio if one else None for one in held(found, aim)] for aim in (self.LATENCY, self.THROUGHPUT)]
        assert ratios == [[2.5, 1.05, 3.0, pytest.approx(2.715)], [1.3, 1.05, 1.25, pytest.approx(1.17)]]
        named, _, reference, _ = held(found, self.LATENCY)
        assert named is not None
        assert reference is not None
        assert named.cell(2.95).startswith("2.50 **no**")
        assert reference.cell(2.95) == "3.00 yes"
        assert is_missed(found, self.LATENCY)

    def test_an_aim_beyond_the_floor_says_so(self) -> None:
        floor = floor_at(self.LATENCY)
        assert floor is not None
        found = by_key([row("parrot_mq", 200.0), row("latency-6144", 400.0)])
        named, strongest, *_ = held(found, self.LATENCY)
        assert strongest is None
        assert named is not None
        assert named.cell(2.95) == f"2.00 **no**, at most {400 / floor.seconds:.2f}"

    def test_nothing_stands_in_for_what_was_not_measured(self) -> None:
        assert held({}, self.LATENCY) == (None, None, None, None)
        assert not is_missed({}, self.LATENCY)


class TestFloor:
    def test_it_is_the_longest_path_and_every_prompt(self) -> None:
        draft = Draft()
        first = draft.call(Function("first", ("aaaa" * 100, ""), 11), "bbbb" * 20)
        for number in range(2):
            draft.call(Function("second", ("aaaa" * 100, "", ""), 21), first, f"{number:_>4}" * 5)
        # 10 + 20 steps; 10 and twice 20 tokens of a sequence in them; a hundred tokens of prompts are common to all.
        prompts = 100 + 20 + 11 + 2 * 5
        assert draft.depth == 2
        assert draft.least_ms(COST) == 30 * 10 + (10 + 2 * 20) * 2 + prompts

    def test_steps_hide_a_reading_of_the_weights_each(self) -> None:
        cost = CostModel(prefill_per_token_ms=1, decode_base_ms=10, decode_per_seq_ms=0, overlap=0.5)
        draft = Draft()
        draft.call(Function("long", ("aaaa" * 100,), 3))
        assert draft.least_ms(cost) == 2 * 10 + 100 - 2 * 5
        short = Draft()
        short.call(Function("short", ("aaaa" * 4,), 101))
        assert short.least_ms(cost) == 100 * 10 + 4 - 2

    @pytest.mark.parametrize("name", ["chain", "map-reduce", "multi-agent"])
    def test_ours_is_above_it(self, name: str) -> None:
        experiment = EXPERIMENTS[name]
        point = next(point for point in experiment.points if point.quick)
        floor_s = floor_of(name, point.label).seconds
        seconds = run_simulated(experiment, point.values, ours(), 0).outcome.seconds
        assert floor_s < seconds < 2 * floor_s

    def test_depth_is_the_calls_that_wait_for_each_other(self) -> None:
        depths = {aim.experiment: floor.depth for aim in AIMS if (floor := floor_at(aim)) and aim.mode == "simulated"}
        assert depths["map-reduce"] == 2
        assert depths["multi-agent"] == 10


class TestTables:
    def test_seconds_stand_beside_the_reference_s(self) -> None:
        found = by_key([row("parrot_mq", 184.0), row("reference", 271.5)])
        text = fit_table(found)
        assert "| multi-agent, files=4, as run | its baseline, reference | 543.0 s | 271.5 s | 0.50 |" in text
        assert "| 184.0 s | 184.0 s | 1.00 |" in text

    def test_the_network_s_part_is_told_apart(self) -> None:
        found = by_key([row("parrot_mq", 200.0, "files=4"), row("throughput+cache", 225.0, "files=4")])
        (line,) = (line for line in reach_table(found).splitlines() if line.startswith("| multi-agent"))
        assert "| 10 | 79.9 | 200.00 s |" in line
        assert "| 225.00 s | 1.12 | 1.01 |" in line
