"""The benchmarks of the engine on a GPU: prompts, floors, who is compared with whom, tables and files."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.engine.peers import PEERS
from benchmarks.engine.workload import Requests, Workload
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import applications, engine, models, serving
from benchmarks.gpu.about import about
from benchmarks.gpu.models import SHAPES
from benchmarks.gpu.report import Aim, Report, Row, table
from benchmarks.gpu.run import Run
from benchmarks.gpu.serving import Contest, Limits, ServedSystem, Work, agreement
from benchmarks.gpu.tree import Tree
from parrot_kernels.gpu.sharing_cost import AttentionShape, SharingCost

CPU = torch.device("cpu")


def test_the_models_are_of_the_sizes_that_their_names_say() -> None:
    assert SHAPES["8b"].num_weights == pytest.approx(8.03e9, rel=0.002)
    assert SHAPES["1b"].num_weights == pytest.approx(1.236e9, rel=0.002)
    assert SHAPES["1b"].num_weights == SHAPES["1b"].num_step_weights  # its head is read, and is its embedding


def test_what_a_step_must_read() -> None:
    shape = SHAPES["8b"]
    each = shape.kv_values_per_token * 2
    assert each == 131072
    weights = shape.num_step_weights * 2
    assert engine.step_bytes(shape, Workload("shared", 512, 64, 64), 8, 2, 2) == weights + (512 + 8 * 96) * each
    assert engine.step_bytes(shape, Workload("unshared", 0, 576, 64), 8, 2, 1) == weights + 8 * 608 * each / 2
    row = {"model": "8b", "dtype": "bf16", "workload": "unshared", "batch": 1, "system": "parrot_mq"}
    floor = engine.against_floor(row | {"decode_tokens_per_s": 100.0}, 4.8e12)
    assert floor["floor_tokens_per_s"] == pytest.approx(4.8e12 / (weights + 608 * each))
    assert floor["bandwidth_share"] == pytest.approx(100 / floor["floor_tokens_per_s"])


def test_what_memory_the_systems_are_given_is_enough() -> None:
    """A request's keys of the longest workload, for all requests of the largest batch."""
    per_token = SHAPES["8b"].kv_values_per_token * 2
    longest = max(each.num_shared + each.num_own + each.num_output for each in engine.WORKLOADS)
    assert longest <= engine.LIMITS.max_len
    assert max(engine.BATCHES) * longest * per_token <= engine.LIMITS.kv_memory_bytes
    (fp8,) = [system for system in engine.SYSTEMS if system.name == engine.OURS_FP8]
    assert max(engine.BATCHES) * longest * per_token // 2 <= fp8.setup["kv_memory_bytes"]
    trees = applications.APPLICATIONS.values()
    for system in applications.SYSTEMS:
        room = system.setup.get("kv_memory_bytes", applications.LIMITS.kv_memory_bytes)
        for tree in trees:
            keys = tree.num_keys if system.setup.get("prefix_caching", True) else tree.num_requests * tree.context
            assert (keys + tree.num_requests * applications.NUM_OUTPUT) * per_token <= room
            assert tree.context + applications.NUM_OUTPUT <= applications.LIMITS.max_len


def test_prompts_of_an_application_share_what_its_tree_says() -> None:
    tree = Tree((1, 2, 4), (64, 32, 16))
    before, asked = applications.batches(tree, 512, "seed", 5)
    paths = [before.prefix, *before.prompts]
    assert [len(path) for path in paths] == [96, 96]
    assert paths[0][:64] == paths[1][:64]
    assert [len(prompt) for prompt in asked.prompts] == [112] * 4
    assert [prompt[:96] for prompt in asked.prompts] == [paths[i // 2] for i in range(4)]
    assert asked.prefix == paths[0] != paths[1]
    assert len({tuple(prompt[96:]) for prompt in asked.prompts}) == 4
    assert (before.num_tokens, asked.num_tokens) == (2, 5)
    assert applications.batches(tree, 512, "seed", 5) == [before, asked]
    (copilot,) = applications.batches(Tree((1, 3), (32, 16)), 512, "other", 5)
    assert all(prompt[:32] == copilot.prefix for prompt in copilot.prompts)


def test_the_copilot_in_small_is_shared_by_the_kernel() -> None:
    """Else the check would compare plain decoding with itself."""
    tree, shape = applications.CHECKS[applications.COPILOT], SHAPES["check"]
    attention = AttentionShape(shape.num_heads, shape.num_kv_heads, shape.head_dim, key_bytes=4)
    assert SharingCost().pays(attention, 16, tree.prefix_keys, tree.num_requests, tree.num_requests)


def test_who_shares_what() -> None:
    off, paged, kernel = applications.SYSTEMS
    assert off.setup["prefix_caching"] is False
    assert off.environment == paged.environment == {"PARROT_MQ_SHARED_ATTENTION": "off"}
    assert not kernel.environment
    assert kernel.interpreted().environ([0])["PARROT_MQ_KERNELS"] == "triton"
    assert paged.interpreted().environ([0])["PARROT_MQ_SHARED_ATTENTION"] == "off"


def test_how_many_times_as_fast_as_shared_pages() -> None:
    copilot = {"model": "8b", "workload": "copilot"}
    rows: list[Row] = [
        copilot | {"system": "paged", "output_tokens_per_s": 100.0, "decode_tokens_per_s": 150.0},
        copilot | {"system": "kernel", "output_tokens_per_s": 175.0, "decode_tokens_per_s": 300.0},
        {"model": "8b", "workload": "multi_agent", "system": "kernel", "error": "it fell over"},
        {"model": "1b", "error": "left out"},
    ]
    applications.compare(rows)
    assert (rows[1]["over_paged"], rows[1]["decode_over_paged"]) == (1.75, 2.0)
    assert "over_paged" not in rows[2]
    (aim,) = applications.aims(rows)
    assert (aim.holds, aim.seen) == (True, "8b: 1.75 x")
    rows[1]["over_paged"] = 1.6
    assert applications.aims(rows)[0].holds is False
    assert applications.aims([])[0].holds is None


def test_the_engines_aim() -> None:
    rows = [
        {"system": "parrot_mq", "model": "8b", "batch": 1, "workload": name, "bandwidth_share": share}
        for name, share in (("shared", 0.84), ("unshared", 0.82))
    ]
    assert engine.aims(rows)[0].holds
    rows[0]["bandwidth_share"] = 0.79
    assert not engine.aims(rows)[0].holds
    assert engine.aims([{"model": "8b", "error": "left out"}])[0].holds is None


def test_tokens_are_compared_up_to_the_first_difference() -> None:
    assert agreement([[1, 2, 3], [4, 5, 6]], [[1, 2, 3], [4, 5, 6]]) == 1.0
    assert agreement([[1, 9, 3]], [[1, 2, 3]]) == 0.5
    assert agreement([[9, 2, 3], [1, 2, 3]], [[1, 2, 3], [1, 2, 3]]) == 0.75


class FakeFleet:
    """Answers with the tokens that each system is known for; ``late`` has no answer in the second round."""

    def __init__(self, cores: list[int], say: object) -> None:
        self.running: dict[str, ServedSystem] = {}
        self.versions: dict[str, dict[str, str]] = {}
        self.errors: dict[str, str] = {}
        self.asked: list[str] = []

    def __enter__(self) -> FakeFleet:
        return self

    def __exit__(self, *error: object) -> None:
        self.running.clear()

    def start(self, system: ServedSystem) -> None:
        self.running[system.name] = system

    def load(self, name: str, **setup: object) -> None:
        self.versions[name] = {"device": str(setup["device"])}

    def run(self, name: str, requests: Requests) -> dict[str, object] | None:
        self.asked.append(name)
        if name == "failing":
            self.errors[name] = "it fell over"
            del self.running[name]
            return None
        token = 8 if name == "wrong" else 7
        outputs = [[token] * requests.num_tokens for _ in requests.prompts]
        return {"outputs": outputs, "wall_s": 2.0, "ttft_s": [0.1], "decode_tokens_per_s": 3.0}


LIMITS = Limits(2, 64, 64, 1 << 20)
WORK = Work("shared", 2, lambda seed: [Requests([1], [[1, 2], [1, 3]], [0.0, 0.0], 4)])
NAMES = ("right", "wrong", "failing", "reference")


@pytest.fixture
def systems(monkeypatch: pytest.MonkeyPatch) -> list[ServedSystem]:
    monkeypatch.setattr(serving, "Fleet", FakeFleet)
    monkeypatch.setattr(serving, "model_folder", lambda model, dtype, device: Path(model))
    return [ServedSystem(name, PEERS["parrot_mq"]) for name in NAMES]


def test_a_contest_has_a_row_for_everybody(systems: list[ServedSystem]) -> None:
    rows = Contest(Run(CPU, True, 3), systems, "check", "f32", LIMITS, "reference").measure([WORK], 3, 1e9)
    assert [row["system"] for row in rows] == list(NAMES)
    right, wrong, failing, reference = rows
    assert (right["output_tokens_per_s"], right["rounds"], right["agreement"]) == (4.0, 3, 1.0)
    assert (wrong["agreement"], reference["agreement"]) == (0.0, 1.0)
    assert failing["error"] == "it fell over"
    assert "output_tokens_per_s" not in failing


def test_a_contest_ends_in_time_but_not_before_its_first_round(systems: list[ServedSystem]) -> None:
    rows = Contest(Run(CPU, True, 3), systems, "check", "f32", LIMITS, "reference").measure([WORK], 3, 0.0)
    assert [row.get("rounds") for row in rows] == [1, 1, None, 1]


def test_who_generates_other_tokens_is_not_measured(systems: list[ServedSystem]) -> None:
    rows, wrong = serving.checked(Run(CPU, True, 1), systems, [WORK], systems[3])
    assert set(wrong) == {"wrong", "failing"}
    assert wrong["wrong"] == "wrong tokens: 0% of them are those of reference"
    assert {row["system"] for row in rows if "error" in row} == {"wrong", "failing"}


def test_where_not_every_token_can_be_the_same_most_must_be(systems: list[ServedSystem]) -> None:
    fp8 = dataclasses.replace(systems[0], name="fp8", check_dtype="bf16", least_agreement=0.5)
    rows, wrong = serving.checked(Run(CPU, True, 1), [fp8, systems[3]], [WORK], systems[3])
    assert not wrong
    assert {(row["system"], row["dtype"]) for row in rows} == {
        ("fp8", "bf16"), ("reference", "bf16"), ("reference", "f32")
    }  # fmt: skip

    def reason(*agreements: float | None) -> str | None:
        return serving._why_wrong([{"agreement": share} for share in agreements], fp8, "reference")

    assert reason(1.0, 0.4) is None
    assert reason(0.5, 0.4) == "wrong tokens: 45% of them are those of reference"
    assert reason(1.0, None) == "there are no tokens of reference to compare with"


def test_no_model_is_made_where_the_disk_has_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "FOLDER", tmp_path / "models")
    monkeypatch.setattr(models.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(20 << 30, 5 << 30, 15 << 30))
    with pytest.raises(SystemExit, match=r"8b-bf16 takes 15.0 GiB, but 15.0 GiB are free"):
        models.model_folder("8b", "bf16", "cuda:0")


def test_a_report(tmp_path: Path) -> None:
    rows = [
        {"system": "ours", "cold_us": 12.34567891, "layers": 2},
        {"system": "theirs", "error": "wrong by 1: not timed"},
    ]
    columns = {"system": "", "cold_us": ".1f", "layers": ""}
    aims = [Aim("it is fast", True, "12 us"), Aim("it is small", None, "nobody looked")]
    report = Report("kernels", rows, columns, {"flashinfer": "not installed"}, aims, {"bytes_per_s": 4.3e12})
    text = report.text().splitlines()
    assert text[0] == "kernels: bytes_per_s 4.3e+12"
    assert text[1:4] == [
        "system  cold_us  layers",
        "ours       12.3       2",
        "theirs        -       -  wrong by 1: not timed",
    ]
    assert text[4:] == [
        "flashinfer is absent: not installed",
        "aim holds: it is fast (12 us)",
        "aim not measured: it is small (nobody looked)",
    ]
    path = report.write({"torch": "2.11"}, tmp_path)
    assert path.name == "gpu_kernels.json"
    stored = json.loads(path.read_text())
    assert stored["rows"] == [rows[0] | {"cold_us": 12.3457}, rows[1]]
    assert stored["about"] == {"torch": "2.11"}
    assert stored["absent"] == {"flashinfer": "not installed"}
    assert [aim["holds"] for aim in stored["aims"]] == [True, None]
    assert table([], columns) == "system  cold_us  layers"


def test_what_a_run_says_about_itself() -> None:
    said = about(CPU)
    assert said["torch"] == torch.__version__
    assert {"triton", "transformers", "flashinfer-python", "driver", "cuda", "device", "date", "revision"} <= set(said)
    assert said["driver"] is None


def test_without_a_gpu_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["benchmarks.gpu", "kernels"])
    with pytest.raises(SystemExit, match="torch sees no GPU"):
        command.main()


def test_a_dry_run_with_a_failure_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def measure(run: Run) -> Report:
        return Report("cost_model", [{"tree": "2/48", "error": "wrong by 1"}], {"tree": ""}, {}, [])

    monkeypatch.setattr("benchmarks.gpu.cost_model.measure", measure)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(sys, "argv", ["benchmarks.gpu", "cost_model", "--dry-run"])
    with pytest.raises(SystemExit, match="failed"):
        command.main()
    assert "wrong by 1" in capsys.readouterr().out


@pytest.mark.parametrize(("budget_s", "is_anybody_right"), [(0.0, True), (1e9, False), (1e9, True)])
def test_models_are_measured_as_far_as_the_time_goes(
    monkeypatch: pytest.MonkeyPatch, budget_s: float, is_anybody_right: bool
) -> None:
    right = [ServedSystem("right", PEERS["parrot_mq"])] if is_anybody_right else []

    def measure(contest: Contest, works: list[Work], rounds: int, until_s: float) -> list[dict[str, Any]]:
        assert 0 < until_s <= budget_s + 1
        return [{"model": contest._model, "works": len(works), "rounds": rounds}]

    monkeypatch.setattr(Contest, "measure", measure)
    run = Run(CPU, False, 3, budget_s)
    rows = serving.measured(run, right, LIMITS, "reference", lambda model: [WORK])
    assert [row["model"] for row in rows] == ["8b", "1b"]
    if budget_s and right:
        assert rows == [{"model": model, "works": 1, "rounds": 3} for model in ("8b", "1b")]
    else:
        assert all("left out" in row["error"] for row in rows)
    assert serving.measured(dataclasses.replace(run, is_dry=True), right, LIMITS, "reference", lambda model: []) == []
