"""The benchmark of the GPU's attention: floors, shapes, who gets a figure and who does not, and its dry run."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import sys
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from benchmarks.gpu import cost_model, kernels
from benchmarks.gpu.attention_case import MAX_ERROR, AttentionCase, num_layers
from benchmarks.gpu.attention_systems import PAGED, SHARED, SYSTEMS, flashinfer
from benchmarks.gpu.cost_model import AlwaysShared
from benchmarks.gpu.prediction import predicted_s
from benchmarks.gpu.report import Row
from benchmarks.gpu.run import Run
from benchmarks.gpu.timing import Call, CudaClock, HostClock, HostRecording, Recording, Timing, alternate
from benchmarks.gpu.tree import Floor, Tree, cases
from parrot_kernels.attention_plan import AttentionPlan
from parrot_kernels.errors import KernelInputError
from parrot_kernels.gpu.attention_bench import tree_tables
from parrot_kernels.gpu.sharing_cost import AttentionShape, SharingCost
from parrot_kernels.gpu.work_list import Tiling, WorkList
from tests.benchmarks import fake_flashinfer

LLAMA = AttentionShape(32, 8, 128)
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("tree", "alone_us", "shared_us", "is_byte_bound"),
    [
        ("1,8/4096,256", 30, 5.2, True),
        ("1,64/4096,256", 238, 17.5, False),
        ("1,64/8192,256", 461, 21, False),
        ("1,256/8192,128", 1818, 35, False),
    ],
)
def test_the_floors(tree: str, alone_us: float, shared_us: float, is_byte_bound: bool) -> None:
    """At 4.8 TB/s."""
    floor = Floor(Tree.parse(tree), LLAMA)
    assert floor.alone_bytes / 4.8e6 == pytest.approx(alone_us, rel=0.01)
    assert floor.seconds(4.8e12) * 1e6 == pytest.approx(shared_us, rel=0.03)
    assert floor.is_byte_bound == is_byte_bound


def test_the_products_of_a_large_batch_take_as_long_as_its_bytes() -> None:
    floor = Floor(Tree.parse("1,256/8192,128"), LLAMA)
    assert floor.flops / 989e12 == pytest.approx(35e-6, rel=0.02)


def test_trees() -> None:
    tree = Tree.parse("1,4,16,512/1024,256,128,32")
    assert str(tree) == "1,4,16,512/1024,256,128,32"
    assert (tree.num_requests, tree.context, tree.num_keys) == (512, 1440, 1024 + 4 * 256 + 16 * 128 + 512 * 32)
    assert (tree.prefix_keys, tree.largest_group, tree.is_shared) == (1408, 512, True)
    alone = Tree.parse("256/4096")
    assert (alone.prefix_keys, alone.largest_group, alone.is_shared) == (0, 1, False)
    for text in ("1,4/64", "4,6/64,64"):
        with pytest.raises(ValueError, match="no tree"):
            Tree.parse(text)


def test_every_shape_that_was_promised_is_measured() -> None:
    measured = {(str(tree), shape.heads, shape.kv_heads) for tree, shape in cases()}
    assert {("1,64/8192,256", 32, 8), ("1,10/4000,400", 16, 1), ("256/4096", 32, 32)} <= measured
    assert len(measured) == len(cases()) == 4 + 4 * 3


def test_tables_of_a_tree() -> None:
    tables = tree_tables((1, 2, 4), (32, 16, 48))
    assert [table[:2] for table in tables] == [[0, 1]] * 4
    assert [table[2] for table in tables] == [2, 2, 3, 3]
    own = list(itertools.chain.from_iterable(table[3:] for table in tables))
    assert own == list(range(4, 16))
    assert tree_tables((1, 2), (16, 0)) == [[0], [0]]
    with pytest.raises(KernelInputError, match="divide"):
        tree_tables((2, 3), (16, 16))
    with pytest.raises(KernelInputError, match="blocks"):
        tree_tables((1,), (40,))


def test_layers_are_gone_from_the_cache_when_their_turn_comes() -> None:
    small, large = Floor(Tree.parse("1,8/4096,256"), LLAMA), Floor(Tree.parse("256/4096"), LLAMA)
    assert num_layers(small, 60 << 20) * small.shared_bytes >= 6 * (60 << 20)
    assert num_layers(large, 60 << 20) == 2


def test_systems_take_turns_and_the_first_round_does_not_count() -> None:
    order: list[str] = []

    class Fake:
        is_graph = True
        outputs: list[Tensor] = []

        def __init__(self, name: str) -> None:
            self.name, self.samples = name, iter([9.0, 1.0, 3.0, 2.0])

        def replay(self) -> None:
            pass

        def sample_s(self) -> float:
            order.append(self.name)
            return next(self.samples)

    taken = alternate({"a": Fake("a"), "b": Fake("b")}, 3)
    assert "".join(order) == "baabbaab"
    assert taken == {name: Timing([1.0, 3.0, 2.0]) for name in "ab"}
    assert (taken["a"].median_s, taken["a"].spread) == (2.0, 1.0)


def toy_case(tree: str = "1,3/64,32") -> AttentionCase:
    torch.manual_seed(0)
    return AttentionCase(Tree.parse(tree), AttentionShape(4, 1, 64), CPU, kernels.LOOSE)


class FakeSystem:
    """Computes what ``outputs`` give, one after the other."""

    name = "fake"

    def __init__(self, outputs: Sequence[Tensor]) -> None:
        self._outputs = itertools.chain(outputs[:-1], itertools.repeat(outputs[-1]))

    def missing(self, device: torch.device) -> str | None:
        return None

    def prepare(self, case: AttentionCase) -> FakeSystem:
        return self

    def run(self, layer: int) -> Tensor:
        return next(self._outputs)

    def plan(self) -> None:
        pass

    def advance(self) -> None:
        pass


def test_who_is_wrong_gets_no_figure() -> None:
    case = toy_case()
    right, run = case.expected, Run(CPU, True, 1)
    (row,) = kernels.measure_case(case, [FakeSystem([right])], run, 1e9)
    assert row["max_error"] < 1e-6
    assert row["cold_us"] > 0
    assert row["floor_share"] == pytest.approx(row["floor_us"] / row["cold_us"])
    assert row["step_us"] == pytest.approx(row["advance_us"] + 32 * row["cold_us"])
    broken = right.clone()
    broken[1, 2] *= 1 + 2 * MAX_ERROR  # one head of one request
    (row,) = kernels.measure_case(case, [FakeSystem([broken])], run, 1e9)
    assert "wrong by 2.0e-02" in row["error"]
    assert "cold_us" not in row
    (row,) = kernels.measure_case(case, [FakeSystem([right, torch.full_like(right, float("nan"))])], run, 1e9)
    assert "once captured" in row["error"]
    assert "cold_us" not in row


def test_who_fails_says_why_and_the_others_go_on() -> None:
    class Failing(FakeSystem):
        name = "failing"

        def run(self, layer: int) -> Tensor:
            raise RuntimeError("no such kernel\nand more")

    case = toy_case()
    rows = kernels.measure_case(case, [Failing([case.expected]), FakeSystem([case.expected])], Run(CPU, True, 1), 1e9)
    assert rows[0]["error"] == "RuntimeError: no such kernel"
    assert rows[1]["cold_us"] > 0


@pytest.mark.parametrize("tree", ["1,3/64,32", "1,2,4/32,16,16", "2/48"])
@pytest.mark.parametrize("heads", [(4, 1), (2, 2)])
def test_flashinfer_is_given_what_its_documentation_asks(
    tree: str, heads: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "flashinfer", fake_flashinfer)
    monkeypatch.setattr(flashinfer, "WORKSPACE_BYTES", 16)
    case = AttentionCase(Tree.parse(tree), AttentionShape(*heads, 64), CPU, kernels.LOOSE)
    ways = [system for system in SYSTEMS if "flashinfer" in system.name]
    rows = kernels.measure_case(case, ways, Run(CPU, True, 1), 1e9)
    assert len(rows) == 4
    assert [row.get("error") for row in rows] == [None] * 4
    assert all(0 < row["max_error"] < MAX_ERROR for row in rows)


def test_why_flashinfer_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda", 0)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "not installed" in (flashinfer.CASCADE.missing(cuda) or "")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name == "flashinfer" else None)
    monkeypatch.setattr(flashinfer.shutil, "which", lambda name: None)
    assert "nvcc" in (flashinfer.CASCADE.missing(cuda) or "")
    monkeypatch.setattr(flashinfer.shutil, "which", lambda name: "/usr/bin/nvcc")
    assert flashinfer.CASCADE.missing(cuda) is None


class FakeCuda:
    """Stands in for ``torch.cuda``: replays run what was captured, and a call takes a millisecond."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s, self.replays = 0.0, 0
        fake = self

        class Stream:
            def wait_stream(self, other: object) -> None:
                pass

        class Graph:
            def replay(self) -> None:
                fake.replays += 1
                fake.now_s += 0.001 * fake.num_captured

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                self.at_s = 0.0

            def record(self) -> None:
                self.at_s = fake.now_s

            def synchronize(self) -> None:
                pass

            def elapsed_time(self, end: Event) -> float:
                return (end.at_s - self.at_s) * 1000

        self.num_captured = 0
        self.pools: list[object] = []

        @contextlib.contextmanager
        def graph(captured: Graph, pool: object) -> Iterator[None]:
            self.num_captured = 0
            self.pools.append(pool)
            yield

        for name, stand_in in {
            "Stream": Stream, "Event": Event, "CUDAGraph": Graph, "graph": graph, "graph_pool_handle": object,
            "current_stream": Stream, "synchronize": lambda: None, "stream": contextlib.nullcontext,
        }.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, stand_in)

    def call(self) -> Tensor:
        self.num_captured += 1
        return torch.ones(1)


def test_a_graph_is_captured_once_and_replayed_for_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(monkeypatch)
    clock = CudaClock()
    recording = clock.record([cuda.call] * 2)
    assert recording.is_graph
    assert len(recording.outputs) == 2
    assert recording.sample_s() == pytest.approx(0.001)
    assert cuda.replays == 1 + 2  # one was too short, two last four milliseconds
    assert recording.sample_s() == pytest.approx(0.001)
    assert cuda.replays == 1 + 2 + 2
    clock.record([cuda.call])
    assert cuda.pools[0] is cuda.pools[1]


def test_what_cannot_be_captured_is_timed_call_by_call() -> None:
    class NoGraphs(HostClock):
        def record(self, calls: Sequence[Call], *, graph: bool = True) -> Recording:
            if graph:
                raise RuntimeError("operation not permitted when stream is capturing\n")
            return HostRecording(calls)

    recording, said = kernels._recorded(NoGraphs(), [lambda: torch.ones(1)])
    assert said == "no: operation not permitted when stream is capturing"
    assert len(recording.outputs) == 1


def test_the_dry_run_checks_everybody_who_runs_on_a_cpu() -> None:
    report = kernels.measure(Run(CPU, True, 1))
    here = {system.name for system in SYSTEMS if "flashinfer" not in system.name}
    assert {SHARED, PAGED, "torch_sdpa", "flex_attention"} == here
    assert set(report.absent) == {system.name for system in SYSTEMS} - here
    assert all("CUDA" in reason for reason in report.absent.values())
    assert {(row["tree"], row["system"]) for row in report.rows} == {
        (tree, name) for tree in ("1,3/64,32", "1,2,4/32,16,16", "2/48") for name in here
    }
    assert [row.get("error") for row in report.rows] == [None] * len(report.rows)
    assert all(0 < row["max_error"] <= MAX_ERROR and row["cold_us"] > 0 for row in report.rows)
    assert "flashinfer_cascade is absent" in report.text()


def row_of(tree: str, system: str, cold_us: float, floor_share: float = 0.5) -> Row:
    return {
        "tree": tree, "heads": "32/8", "dim": 128, "system": system, "cold_us": cold_us, "floor_share": floor_share
    }  # fmt: skip


def test_aims() -> None:
    rows = [
        row_of("1,8/4096,256", SHARED, 7.0, 0.74),
        row_of("1,8/4096,256", "torch_sdpa", 90.0),
        row_of("1,64/8192,256", SHARED, 60.0, 0.35),  # bound by products: no floor is promised
        row_of("1,64/8192,256", PAGED, 400.0),
        row_of("256/4096", SHARED, 103.0),
        row_of("256/4096", PAGED, 100.0),
    ]
    assert [aim.holds for aim in kernels.aims(rows, {})] == [True, True, True]
    assert [aim.holds for aim in kernels.aims(rows, {"flashinfer_batch": "not installed"})] == [True, None, True]
    rows += [row_of("1,64/8192,256", "flex_attention", 60.0), row_of("1,10/4000,400", SHARED, 9.0, 0.6)]
    rows[4]["cold_us"] = 104.0
    near, ahead, slower = kernels.aims(rows, {})
    assert (near.holds, ahead.holds, slower.holds) == (False, False, False)
    assert "flex_attention at 1,64/8192,256 32/8: 1.00 x" in ahead.seen
    assert [aim.holds for aim in kernels.aims([], {})] == [None, None, None]


def test_what_the_model_predicts_of_a_work_list() -> None:
    tables = tree_tables((1, 2), (64, 32))
    plan = AttentionPlan([1, 1], [96, 96], tables)
    tiling = Tiling(LLAMA, 16, 132)
    rates = {"bytes_per_s": 1e12, "reread_bytes_per_s": 2e12, "part_s": 1e-9, "item_s": 1e-8, "launch_s": 3e-6}
    alone = SharingCost(**rates, share=False)
    size = LLAMA.bytes_per_key
    items = 2 * 8 * 1e-8
    # Both read 96 keys, of which 64 are the same.
    expected = 3e-6 + 128 * size / 1e12 + 64 * size / 2e12 + items
    assert predicted_s(WorkList.of(plan, tiling, alone), tiling, alone) == pytest.approx(expected)
    shared = AlwaysShared(**rates, share=True)
    work = WorkList.of(plan, tiling, shared)
    assert len(work.items) == 3
    expected = 3e-6 + 128 * size / 1e12 + 3 * 8 * 1e-8 + 4 * 32 * 1e-9
    assert predicted_s(work, tiling, shared) == pytest.approx(expected)


def test_how_often_the_model_was_right() -> None:
    def point(shared: float, alone: float, decided: str, predicted: float) -> Row:
        faster = "shared" if shared < alone else "alone"
        times = {"shared": shared, "alone": alone}
        return {
            "shared_us": shared, "alone_us": alone, "predicted_shared_us": predicted, "predicted_alone_us": alone,
            "decided": decided, "faster": faster, "lost": times[decided] / times[faster] - 1,
        }  # fmt: skip

    rows = [point(10, 20, "shared", 11), point(10, 12, "alone", 5), {"error": "left out"}]
    found = cost_model.summary(rows)
    assert (found["points"], found["right"]) == (2, 0.5)
    assert found["error_max"] == pytest.approx(0.5)
    assert found["error_p50"] == pytest.approx(0.05)
    assert found["lost_when_wrong_mean"] == found["lost_when_wrong_max"] == pytest.approx(0.2)
    assert cost_model.summary([]) == {"points": 0}


def test_the_dry_run_of_the_cost_model() -> None:
    report = cost_model.measure(Run(CPU, True, 1))
    (row,) = report.rows
    assert "error" not in row
    assert 0 < row["shared_error"] <= MAX_ERROR
    assert 0 < row["alone_error"] <= MAX_ERROR
    assert report.figures["points"] == 1
    assert set(report.figures["rates"]["4/1"]) == set(SharingCost.__dataclass_fields__)


def test_when_the_time_is_over_the_rest_is_named() -> None:
    report = kernels.measure(Run(CPU, True, 1, budget_s=-1.0))
    assert {row["error"] for row in report.rows} == {"left out: the time was over"}
    assert len(report.rows) == 3 * 4
