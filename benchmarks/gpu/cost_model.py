"""How well the calibrated ``SharingCost`` fits: predicted against measured times, and what its decisions cost.

Every point of a grid of batches with one prefix is run with the prefix shared and not, whatever the model decides. The
decision is right if it chose the faster; what a wrong one costs is the part of the faster one's time that is lost.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import statistics
from collections.abc import Iterator, Sequence

import torch

from benchmarks.gpu.attention_case import MAX_ERROR, AttentionCase
from benchmarks.gpu.prediction import predicted_s
from benchmarks.gpu.report import Report, Row
from benchmarks.gpu.run import Run
from benchmarks.gpu.timing import alternate
from benchmarks.gpu.tree import HEAD_DIM, Tree
from parrot_kernels.attention_plan import AttentionPlan
from parrot_kernels.gpu.calibration import Sizes, calibrate
from parrot_kernels.gpu.device_plan import DevicePlan
from parrot_kernels.gpu.paged_attention import paged_attention
from parrot_kernels.gpu.sharing_cost import AttentionShape, SharingCost
from parrot_kernels.gpu.work_list import WorkList

HEADS = ((32, 8), (16, 1), (32, 32))
BATCHES = (2, 8, 32, 128)
PREFIXES = (64, 256, 1024, 4096, 16384)
SUFFIXES = (64, 512)
TOY_SIZES = Sizes(sequences=2, keys=256, rows=5, short_sequences=2)
ROUNDS = 5
COLUMNS = {
    "tree": "",
    "heads": "",
    "shared_us": ".1f",
    "predicted_shared_us": ".1f",
    "alone_us": ".1f",
    "predicted_alone_us": ".1f",
    "decided": "",
    "faster": "",
    "lost": ".1%",
}


@dataclasses.dataclass(frozen=True, slots=True)
class AlwaysShared(SharingCost):
    """The same rates, but every common prefix is shared."""

    def pays(self, shape: AttentionShape, wide: int, num_keys: int, num_rows: int, num_readers: int) -> bool:
        return num_readers > 1


def grid(is_dry: bool) -> Iterator[tuple[Tree, AttentionShape]]:
    if is_dry:
        yield Tree((1, 2), (32, 16)), AttentionShape(4, 1, 64)
        return
    for heads, kv_heads in HEADS:
        for batch, prefix, suffix in itertools.product(BATCHES, PREFIXES, SUFFIXES):
            yield Tree((1, batch), (prefix, suffix)), AttentionShape(heads, kv_heads, HEAD_DIM)


def measure(run: Run) -> Report:
    """Calibrate for each shape of heads, then measure its points until the time is over."""
    costs: dict[AttentionShape, SharingCost] = {}
    rows: list[Row] = []
    for tree, shape in grid(run.is_dry):
        if shape not in costs:
            costs[shape] = _calibrated(shape, run)
            run.say(f"{shape.heads}/{shape.kv_heads} heads: {costs[shape]}")
        head = {"tree": str(tree), "heads": f"{shape.heads}/{shape.kv_heads}"}
        if run.is_over:
            rows.append(head | {"error": "left out: the time was over"})
            continue
        rows.append(head | measure_point(AttentionCase(tree, shape, run.device, costs[shape]), run))
    rates = {f"{shape.heads}/{shape.kv_heads}": dataclasses.asdict(cost) for shape, cost in costs.items()}
    return Report("cost_model", rows, COLUMNS, {}, [], summary(rows) | {"rates": rates})


def _calibrated(shape: AttentionShape, run: Run) -> SharingCost:
    if not run.is_dry:
        return calibrate(shape, run.device)

    clock = run.new_clock()
    return calibrate(shape, run.device, sizes=TOY_SIZES, measure=lambda call: clock.record([call]).sample_s())


def measure_point(case: AttentionCase, run: Run) -> Row:
    """Return both times and their predictions, which the model would have chosen, and which was the faster."""
    rates = dataclasses.asdict(case.cost)
    costs = {"shared": AlwaysShared(**rates | {"share": True}), "alone": SharingCost(**rates | {"share": False})}
    recordings, row, clock = {}, {}, run.new_clock()
    for name, cost in costs.items():
        plan = _plan(case)
        device_plan = DevicePlan.of(plan, case.shape, case.device, cost)
        work = WorkList.of(plan, device_plan.tiling, cost)
        row[f"predicted_{name}_us"] = predicted_s(work, device_plan.tiling, cost) * 1e6
        calls = [functools.partial(_attend, case, plan, layer) for layer in range(case.num_layers)]
        recordings[name] = clock.record(calls)
        error = case.error(recordings[name].outputs[0])
        if error > MAX_ERROR:
            return {"error": f"{name}: wrong by {error:.1e}"}
        row[f"{name}_error"] = error
    for name, timing in alternate(recordings, min(run.rounds, ROUNDS)).items():
        row |= {f"{name}_us": timing.median_s * 1e6, f"{name}_spread": timing.spread}
    decided = "shared" if _shares(case) else "alone"
    faster = "shared" if row["shared_us"] < row["alone_us"] else "alone"
    return row | {"decided": decided, "faster": faster, "lost": row[f"{decided}_us"] / row[f"{faster}_us"] - 1}


def _attend(case: AttentionCase, plan: AttentionPlan, layer: int) -> torch.Tensor:
    return paged_attention(case.query, case.keys[layer], case.values[layer], plan, scale=case.scale)[0]


def _plan(case: AttentionCase) -> AttentionPlan:
    tables = case.tables
    return AttentionPlan([1] * len(tables), [case.tree.context] * len(tables), tables)


def _shares(case: AttentionCase) -> bool:
    """Whether the model, left to itself, cuts a piece that several requests read."""
    plan = _plan(case)
    tiling = DevicePlan.of(plan, case.shape, case.device, case.cost).tiling
    pieces = plan.cut(lambda keys, rows, readers: case.cost.pays(case.shape, tiling.wide, keys, rows, readers))
    return any(piece.num_sequences > 1 for piece in pieces)


def summary(rows: Sequence[Row]) -> Row:
    """Return the percentiles of the predictions' errors, and how often the decision was right or what it cost."""
    measured = [row for row in rows if "shared_us" in row]
    if not measured:
        return {"points": 0}
    errors = [
        abs(row[f"predicted_{name}_us"] / row[f"{name}_us"] - 1) for row in measured for name in ("shared", "alone")
    ]
    lost = [row["lost"] for row in measured if row["decided"] != row["faster"]]
    return {
        "points": len(measured),
        "error_p50": statistics.median(errors),
        "error_p90": statistics.quantiles(errors, n=10, method="inclusive")[8],
        "error_max": max(errors),
        "right": 1 - len(lost) / len(measured),
        "lost_when_wrong_mean": statistics.mean(lost) if lost else 0.0,
        "lost_when_wrong_max": max(lost, default=0.0),
    }
