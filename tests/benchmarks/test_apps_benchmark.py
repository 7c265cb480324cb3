"""The benchmark of applications: its shapes are the reference's, drivers ask for the same, rows say what ran."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import parrot_mq as P
from benchmarks.apps.application import Application, Function, Handle
from benchmarks.apps.bench import Bench, Experiment, Outcome, Point, Result, Scale
from benchmarks.apps.drivers import MAX_ROUND_TRIP_S, MIN_ROUND_TRIP_S, Network, Ran, RequestTrace
from benchmarks.apps.experiments import EXPERIMENTS
from benchmarks.apps.experiments.as_run import CHAIN_CALLS, CONCURRENT_CALLS
from benchmarks.apps.experiments.multi_agent import CODES, REVIEWS, REVISIONS
from benchmarks.apps.plan import Book, orders
from benchmarks.apps.plots import draw
from benchmarks.apps.reference import AIMS, PUBLISHED
from benchmarks.apps.report import markdown, rate_within
from benchmarks.apps.rows import Row, merge, read, row_of, with_ratios
from benchmarks.apps.systems import AHEAD, BASELINES, SWITCHES, SYSTEMS, latency_seqs, ours
from benchmarks.apps.texts import SimulatedTexts
from parrot_mq.messages import CostModel, RequestShape
from parrot_workers.sim.content import count_tokens


@dataclasses.dataclass(frozen=True)
class Made:
    """A call as ``Recorder`` saw it: its prompt's tokens, its output's, and the calls it read."""

    function: Function
    inputs: tuple[str | int, ...]

    def prompt_tokens(self, made: Sequence[Made]) -> int:
        read = [
            made[value].function.num_output if isinstance(value, int) else count_tokens(value) for value in self.inputs
        ]
        return sum(map(count_tokens, self.function.parts)) + sum(read)


class Recorder:
    """A driver that runs nothing: it keeps what is called, and takes a second for each application."""

    def __init__(self) -> None:
        self.made: list[Made] = []
        self.results: list[int] = []

    async def run(
        self, name: str, application: Application, objective: P.Objective = P.LATENCY, *, stream: bool = False
    ) -> Ran:
        start = len(self.made)
        self.results += application(self)
        await asyncio.sleep(0)
        return Ran(0.0, 1.0, sum(made.function.num_output for made in self.made[start:]), 0.5)

    def call(self, function: Function, *inputs: str | Handle) -> Handle:
        assert len(inputs) == function.num_inputs
        self.made.append(Made(function, inputs))
        return len(self.made) - 1

    async def requests(self) -> list[RequestTrace]:
        return []


async def record(name: str, scale: Scale = Scale(), **values: Any) -> Recorder:  # noqa: B008 - frozen
    recorder = Recorder()
    await EXPERIMENTS[name].run(Bench(recorder, SimulatedTexts(0), scale, 0), **values)
    return recorder


class TestShapes:
    async def test_a_chain_reads_its_chunks_one_after_the_other(self) -> None:
        recorder = await record("chain", chunk=1024, out=50, documents=[3])
        assert len(recorder.made) == 20
        assert [made.prompt_tokens(recorder.made) for made in recorder.made[1:]] == [36 + 28 + 31 + 1024 + 50] * 19
        assert all(number - 1 in made.inputs for number, made in enumerate(recorder.made) if number)

    async def test_a_summary_may_come_first(self) -> None:
        recorder = await record("chain", chunk=1024, out=50, documents=[3], chunk_first=False)
        assert isinstance(recorder.made[5].inputs[0], int)

    async def test_as_run_chunks_are_more_and_shorter(self) -> None:
        recorder = await record("chain", chunk=1024, out=50, documents=[3], as_run=True)
        assert len(recorder.made) == 46
        assert {made.prompt_tokens(recorder.made) for made in recorder.made[1:]} == {36 + 28 + 31 + 474 + 50}
        assert sum(CHAIN_CALLS) / len(CHAIN_CALLS) == pytest.approx(65.8, abs=0.1)
        concurrent = await record("concurrent-chains", count=2, as_run=True)
        assert len(concurrent.made) == sum(CONCURRENT_CALLS[:2])

    async def test_as_run_users_in_the_background_differ_in_their_last_token(self) -> None:
        recorder = await record("chain-background", rate=1000.0, documents=[3], as_run=True)
        users = [made for made in recorder.made if made.function.name == "background"]
        assert len({made.function for made in users}) == 1
        assert {count_tokens(str(made.inputs[0])) for made in users} == {1}
        assert {made.prompt_tokens(recorder.made) for made in users} == {512}

    @pytest.mark.parametrize(("files", "printed"), [(4, (17339, 21096, 24388)), (8, (33654, 42237, 47938))])
    async def test_as_run_agents_have_the_tokens_that_the_artifact_prints(
        self, files: int, printed: tuple[int, int, int]
    ) -> None:
        """For each stage, of prompts and outputs together."""
        recorder = await record("multi-agent", files=files, as_run=True)
        sums: Counter[str] = Counter()
        for made in recorder.made:
            sums[made.function.name] += made.prompt_tokens(recorder.made) + made.function.num_output
        for name, rounds, tokens in zip(("coder", "reviewer", "reviser"), (1, 4, 4), printed, strict=True):
            assert sums[name] / rounds == pytest.approx(tokens, rel=0.01)

    async def test_half_the_chunk_is_twice_the_calls(self) -> None:
        whole, half = [await record("chain", chunk=chunk, out=50, documents=[0, 4]) for chunk in (1024, 512)]
        assert len(half.made) == 2 * len(whole.made)

    async def test_a_reduce_reads_every_map(self) -> None:
        recorder = await record("map-reduce", chunk=1024, out=25, documents=[3])
        *maps, reduce = recorder.made
        assert len(maps) == 20
        assert reduce.inputs == tuple(range(20))
        assert {made.function.num_output for made in recorder.made} == {25}

    async def test_agents_have_the_prompts_of_the_log(self) -> None:
        recorder = await record("multi-agent", files=8)
        lengths = Counter((made.function.name, made.prompt_tokens(recorder.made)) for made in recorder.made)
        assert lengths == {
            ("architect", 182): 1,
            ("coder", 2991): 8,
            ("reviewer", 3717): 32,
            ("reviser", 4175): 32,
        }
        outputs = Counter(made.function.num_output for made in recorder.made)
        assert outputs == Counter([706, *CODES, *REVIEWS * 4, *REVISIONS * 4])

    @pytest.mark.parametrize("files", [4, 8, 12, 16])
    async def test_agents_read_what_the_stage_before_wrote(self, files: int) -> None:
        recorder = await record("multi-agent", files=files)
        assert len(recorder.made) == 1 + files * 9
        for made in recorder.made[1:]:
            assert any(isinstance(value, int) for value in made.inputs)
        # Whatever nobody reads is a result, so that a client waits for no more than we do.
        read = {value for made in recorder.made for value in made.inputs if isinstance(value, int)}
        assert sorted(recorder.results) == [number for number in range(len(recorder.made)) if number not in read]

    async def test_agents_of_a_stage_share_all_but_their_last_tokens(self) -> None:
        recorder = await record("multi-agent", files=4)
        coders = [made for made in recorder.made if made.function.name == "coder"]
        assert len({(made.function.parts, made.inputs[:-1]) for made in coders}) == 1
        assert len({made.inputs[-1] for made in coders}) == 4
        assert count_tokens(coders[0].inputs[-1]) == 75

    async def test_users_of_a_copilot_share_its_prompt(self) -> None:
        recorder = await record("copilot", batch=64)
        assert len(recorder.made) == 64
        assert {count_tokens(made.function.parts[0]) for made in recorder.made} == {5107}
        prompts = [made.prompt_tokens(recorder.made) for made in recorder.made]
        assert sum(prompts) / 64 == pytest.approx(6170, rel=0.01)
        assert min(made.function.num_output for made in recorder.made) == 183

    async def test_public_applications_come_equally_often(self) -> None:
        recorder = await record("gpts", rate=1000.0, count=8)
        assert set(Counter(made.function.name for made in recorder.made).values()) == {2}
        assert {(made.prompt_tokens(recorder.made), made.function.num_output) for made in recorder.made} == {
            (7444, 704),
            (1124, 89),
            (1698, 631),
            (2035, 416),
        }

    async def test_chats_are_as_long_as_the_reference_lets_them_be(self) -> None:
        recorder = await record("mixed", Scale(rate=1e6), chats=40, applications=0)
        for made in recorder.made:
            prompt = made.prompt_tokens(recorder.made)
            assert 4 <= prompt <= 1024
            assert prompt + made.function.num_output <= 2048

    async def test_work_is_divided_by_a_scale(self) -> None:
        recorder = await record("map-reduce", Scale(tokens=4, work=4), chunk=1024, out=50, documents=[3])
        assert [made.function.num_output for made in recorder.made] == [12] * 21
        assert count_tokens(recorder.made[0].inputs[0]) == 256

    async def test_background_ends_with_the_chain(self) -> None:
        recorder = await record("chain-background", rate=1000.0, documents=[3])
        assert {made.function.name for made in recorder.made} == {"first", "refine", "background"}


class TestSystems:
    def test_a_baseline_has_every_switch_off(self) -> None:
        for system in BASELINES:
            assert not any(getattr(system.scheduler, name) for name in SWITCHES)

    def test_of_ours_that_is_off_which_is_named(self) -> None:
        assert all(getattr(ours().scheduler, name) for name in SWITCHES)
        for name in SWITCHES:
            assert [other for other in SWITCHES if not getattr(ours(name).scheduler, other)] == [name]
        both = ours(AHEAD).scheduler
        assert {name for name in SWITCHES if not getattr(both, name)} == set(AHEAD.split("+"))

    def test_a_feature_has_a_name_that_exists(self) -> None:
        with pytest.raises(ValueError, match="'magic' is no feature"):
            ours("eager_prefill+magic")
        for experiment in EXPERIMENTS.values():
            assert {ours(feature).label for feature in experiment.features} <= set(SYSTEMS)
            assert set(experiment.baselines) <= set(SYSTEMS)

    def test_a_latency_centric_engine_bounds_the_time_per_token(self) -> None:
        cost = CostModel(prefill_per_token_ms=0.1, decode_base_ms=20, decode_per_seq_ms=0.5)
        shape = RequestShape(1000, 50, cached_tokens=900)
        whole = latency_seqs(cost, shape, prefix_caching=False)
        assert cost.steady_tpot_ms(whole, RequestShape(1000, 50)) <= 40
        assert cost.steady_tpot_ms(whole + 1, RequestShape(1000, 50)) > 40
        assert latency_seqs(cost, shape, prefix_caching=True) > whole

    def test_it_runs_one_sequence_however_slow(self) -> None:
        assert latency_seqs(CostModel(decode_base_ms=50), RequestShape(10, 10), prefix_caching=False) == 1


class TestNetwork:
    def test_trips_are_those_of_the_reference(self) -> None:
        network = Network(1)
        trips = sorted(2 * network.half_trip_s() for _ in range(20_000))
        assert trips[0] >= MIN_ROUND_TRIP_S
        assert trips[-1] <= MAX_ROUND_TRIP_S
        assert trips[10_000] == pytest.approx(0.238, abs=0.002)
        assert sum(trips) / len(trips) == pytest.approx(0.250, abs=0.01)

    def test_a_client_may_be_beside_the_service(self) -> None:
        assert Network(1, scale=0).half_trip_s() == 0


def trace(number: int, digest: str) -> RequestTrace:
    return RequestTrace(("a", number), "f", "e", 10, 11, 12, 13, 14 + number, 5, 0, 2, digest)


TOY = Experiment(
    name="chain",
    profile="a100-13b",
    num_engines=1,
    shape=RequestShape(10, 10),
    baselines=("latency", "throughput"),
    features=("eager_prefill",),
    points=(Point("out=50", {}, quick=True), Point("out=25", {})),
    run=lambda bench: asyncio.sleep(0, Outcome(1.0)),
)


class TestRows:
    def test_every_system_runs_every_repeat(self) -> None:
        chosen = orders([TOY], repeats=3)
        counts = Counter((order.point.label, order.system.label) for order in chosen)
        assert set(counts.values()) == {3}
        assert {label for point, label in counts if point == "out=25"} == {"parrot_mq", "latency", "throughput"}
        assert ("out=50", "parrot_mq -eager_prefill") in counts
        assert len({order.system.label for order in chosen if order.repeat == 1}) == 4

    def test_some_points_are_run_for_real_alone_and_some_experiments_never(self) -> None:
        real, simulated = (
            {
                (order.experiment.name, order.point.label)
                for order in orders(EXPERIMENTS.values(), repeats=1, is_real=is_real)
            }
            for is_real in (True, False)
        )
        assert real - simulated == {("multi-agent", "files=4, float32")}
        assert {name for name, _ in simulated - real} == {"retention", "task-groups"}

    def test_systems_take_turns_in_being_first(self) -> None:
        chosen = orders([TOY], repeats=3, is_chosen=lambda point: not point.quick)
        assert len({order.system.label for order in chosen[::3]}) == 3

    def test_a_row_holds_medians_spread_and_ratio(self) -> None:
        book = Book(orders([TOY], repeats=3, is_chosen=lambda point: not point.quick), "simulated", {"date": "today"})
        rows: list[Row] = []
        for order in orders([TOY], repeats=3, is_chosen=lambda point: not point.quick):
            seconds = (2.0 if order.system.client_side else 1.0) + 0.1 * order.repeat
            digest = "other" if order.system.latency_centric and order.repeat else "same"
            rows += book.record(
                order, Result(Outcome(seconds, {"tpot_ms": 10.0}), [trace(1, "same"), trace(2, digest)])
            )
        by_system = {row["system"]: row for row in with_ratios(rows)}
        assert by_system["latency"]["seconds_median"] == 2.1
        assert by_system["latency"]["spread"] == pytest.approx(0.2 / 2.1, abs=1e-4)
        assert by_system["latency"]["ratio_to_ours"] == pytest.approx(2.1 / 1.1, abs=1e-4)
        assert by_system["latency"]["same_outputs"] == pytest.approx(4 / 6, abs=1e-4)
        assert by_system["throughput"]["same_outputs"] == by_system["parrot_mq"]["same_outputs"] == 1.0
        assert by_system["parrot_mq"] | {"tpot_ms": 10.0, "date": "today"} == by_system["parrot_mq"]

    def test_a_timeline_begins_with_the_first_call(self, tmp_path: Path) -> None:
        (order, *_) = chosen = orders([TOY], repeats=1)
        Book(chosen, "real", {}, tmp_path).record(order, Result(Outcome(1.0), [trace(1, "a")]))
        (path,) = tmp_path.iterdir()
        assert path.name == "chain_out50_real_parrot_mq.json"
        assert '"done_ms": 5' in path.read_text()

    def test_a_row_takes_the_place_of_the_one_before(self, tmp_path: Path) -> None:
        path = tmp_path / "apps.json"
        merge(path, [row_of("chain", "out=25", "simulated", "parrot_mq", "", [Outcome(2.0)])])
        merge(path, [row_of("chain", "out=25", "simulated", "latency", "", [Outcome(3.0)])])
        merge(path, [row_of("chain", "out=25", "simulated", "parrot_mq", "", [Outcome(1.5)])])
        assert {row["system"]: row["ratio_to_ours"] for row in read(path)} == {"parrot_mq": 1.0, "latency": 2.0}


class TestReport:
    def test_it_says_which_aims_hold(self) -> None:
        rows = with_ratios(
            [
                _row("chain", "out=25", "parrot_mq", 20.0),
                _row("chain", "out=25", "latency-6144", 28.0),
                _row("chain", "out=25", "latency+cache", 26.0),
                _row("chain", "out=25", "throughput+cache", 24.0),
                _row("chain", "out=25", "parrot_mq", 22.0, feature_off="eager_prefill"),
            ]
        )
        text = markdown(rows)
        assert "| chain, out=25, simulated | 1.38 | latency-6144 | 1.40 yes | 1.20 **no** | - | - |" in text
        assert "| out=25 | eager_prefill | 22.00 s ± 1% | +10.0% | 100.0% |" in text
        assert "| out=25 | **20.00 s ± 1%** |" in text
        assert "| chain, out=50, simulated | 1.21 | latency-6144 | not measured | not measured | - | - |" in text

    def test_every_experiment_has_its_plot(self, tmp_path: Path) -> None:
        numbers = ("normalised_ms", "chat_tpot_ms", "map_reduce_tokens_per_s")
        extras = {"applications_s": [1.0]} | dict.fromkeys(numbers, 50.0)
        rows = [
            _row(name, point.label, system, 1.0) | extras
            for name, experiment in EXPERIMENTS.items()
            for point in experiment.points
            for system in ("parrot_mq", "latency")
        ]
        paths = draw(with_ratios(rows), tmp_path)
        assert [path.name for path in paths] == [f"apps-{name}-simulated.svg" for name in EXPERIMENTS]
        text = markdown(with_ratios(rows))
        assert all(path.name in text for path in paths)
        assert all("latency" in path.read_text() for path in paths)
        assert "- mixed, simulated: chats take +0.0% a token beside map-reduces (aim: at most +10%): yes" in text

    def test_a_rate_lies_where_the_bound_is_crossed(self) -> None:
        rows = [_row("gpts", f"rate={rate}", "x", 1.0) | {"normalised_ms": 50.0 * rate} for rate in (1, 2, 4)]
        assert rate_within(rows, 125.0) == pytest.approx(2.5)
        assert rate_within(rows, 1000.0) == 4.0
        assert rate_within(rows, 10.0) == 0.0

    def test_aims_are_about_points_that_there_are(self) -> None:
        for experiment, label in [*((aim.experiment, aim.point) for aim in AIMS), *PUBLISHED]:
            assert label in {point.label for point in EXPERIMENTS[experiment].points}

    def test_a_row_of_a_point_that_is_no_more_is_not_shown(self) -> None:
        rows = [_row("chain", "out=50", "parrot_mq", 10.0), _row("chain", "out=51", "parrot_mq", 77.0)]
        assert "77.00" not in markdown(with_ratios(rows))


def _row(experiment: str, point: str, system: str, seconds: float, feature_off: str = "") -> Row:
    outcomes = [Outcome(seconds * factor) for factor in (0.99, 1.0, 1.01)]
    row = row_of(experiment, point, "simulated", system, feature_off, outcomes)
    return row | {"same_outputs": 1.0, "date": "2026-11-22"}
