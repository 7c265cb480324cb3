"""A step's attention by our kernel and by every baseline: cold and warm, with what planning takes.

Each system's output is compared with float64 before it is timed, as it was called and as it was captured; one that is
wrong gets no figure. All of them then take turns over the same queries and keys.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch

from benchmarks.gpu import bandwidth
from benchmarks.gpu.attention_case import MAX_ERROR, AttentionCase
from benchmarks.gpu.attention_systems import PAGED, SHARED, SYSTEMS
from benchmarks.gpu.attention_systems.system import AttentionSystem, Prepared
from benchmarks.gpu.report import Aim, Report, Row
from benchmarks.gpu.run import Run
from benchmarks.gpu.timing import Clock, Recording, alternate, host_seconds
from benchmarks.gpu.tree import Floor, Tree, cases, toy_cases
from parrot_kernels.gpu.calibration import calibrate
from parrot_kernels.gpu.sharing_cost import AttentionShape, SharingCost

STEP_LAYERS = 32
"""Layers of a step for which one plan is made."""
PLAN_ROUNDS = 5
WARM_CALLS = 8
COLUMNS = {
    "tree": "",
    "heads": "",
    "system": "",
    "cold_us": ".1f",
    "spread": ".0%",
    "warm_us": ".1f",
    "plan_us": ".0f",
    "advance_us": ".0f",
    "step_us": ".0f",
    "floor_us": ".1f",
    "floor_share": ".0%",
    "max_error": ".1e",
    "graph": "",
}
LOOSE = SharingCost(part_s=0.0, item_s=0.0, share=True)
"""Shares at toy size too."""


def measure(run: Run) -> Report:
    """Measure every case until the time is over."""
    rate = bandwidth.bytes_per_s(run.device, run.new_clock())
    absent = {system.name: reason for system in SYSTEMS if (reason := system.missing(run.device))}
    present = [system for system in SYSTEMS if system.name not in absent]
    costs: dict[AttentionShape, SharingCost] = {}
    rows: list[Row] = []
    for tree, shape in toy_cases() if run.is_dry else cases():
        if run.is_over:
            rows += [_head(system, tree, shape) | {"error": "left out: the time was over"} for system in present]
            continue
        if shape not in costs:
            costs[shape] = LOOSE if run.is_dry else calibrate(shape, run.device)
        case = AttentionCase(tree, shape, run.device, costs[shape])
        rows += measure_case(case, present, run, rate)
        run.say(f"{tree}, {shape.heads}/{shape.kv_heads} heads")
        del case
        if run.device.type == "cuda":
            torch.cuda.empty_cache()
    figures = {"bytes_per_s": rate, "layers_of_a_step": STEP_LAYERS}
    return Report("kernels", rows, COLUMNS, absent, [] if run.is_dry else aims(rows, absent), figures)


def measure_case(case: AttentionCase, systems: Sequence[AttentionSystem], run: Run, rate: float) -> list[Row]:
    """Return a row for each system, with a figure where it was right, and an ``error`` where it was not."""
    rows = {system.name: _head(system, case.tree, case.shape) for system in systems}
    ready: dict[str, Prepared] = {}
    cold: dict[str, Recording] = {}
    warm: dict[str, Recording] = {}
    clock = run.new_clock()
    for system in systems:
        row = rows[system.name]
        try:
            prepared = system.prepare(case)
            row["max_error"] = case.error(prepared.run(0))
            if row["max_error"] > MAX_ERROR:
                row["error"] = f"wrong by {row['max_error']:.1e}: not timed"
                continue
            layers = [functools.partial(prepared.run, layer) for layer in range(case.num_layers)]
            cold[system.name], row["graph"] = _recorded(clock, layers)
            warm[system.name], _ = _recorded(clock, layers[:1] * (1 if run.is_dry else WARM_CALLS))
            cold[system.name].replay()
            row["max_error"] = max(row["max_error"], case.error(cold[system.name].outputs[0]))
            if row["max_error"] > MAX_ERROR:
                row["error"] = f"wrong by {row['max_error']:.1e} once captured: not timed"
                del cold[system.name], warm[system.name]
                continue
        except Exception as error:  # noqa: BLE001 - a baseline may raise anything; its row says what
            row["error"] = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            cold.pop(system.name, None)
            continue
        ready[system.name] = prepared
    floor = Floor(case.tree, case.shape)
    taken, taken_warm = alternate(cold, run.rounds), alternate(warm, run.rounds)
    for name, prepared in ready.items():
        plan_s, advance_s = (
            host_seconds(call, clock, min(run.rounds, PLAN_ROUNDS)) for call in (prepared.plan, prepared.advance)
        )
        rows[name] |= {
            "cold_us": taken[name].median_s * 1e6,
            "spread": taken[name].spread,
            "warm_us": taken_warm[name].median_s * 1e6,
            "plan_us": plan_s * 1e6,
            "advance_us": advance_s * 1e6,
            "step_us": (advance_s + STEP_LAYERS * taken[name].median_s) * 1e6,
            "floor_us": floor.seconds(rate) * 1e6,
            "floor_share": floor.seconds(rate) / taken[name].median_s,
            "bytes": floor.shared_bytes,
            "alone_bytes": floor.alone_bytes,
            "flops": floor.flops,
            "layers": case.num_layers,
            "rounds": run.rounds,
        }
    return list(rows.values())


def _head(system: AttentionSystem, tree: Tree, shape: AttentionShape) -> Row:
    return {"tree": str(tree), "heads": f"{shape.heads}/{shape.kv_heads}", "dim": shape.head_dim, "system": system.name}


def _recorded(clock: Clock, calls: Sequence[functools.partial[torch.Tensor]]) -> tuple[Recording, str]:
    """Record as a graph, and where that cannot be call by call; return what it is, too."""
    try:
        recording = clock.record(calls)
    except RuntimeError as error:
        return clock.record(calls, graph=False), f"no: {str(error).partition(chr(10))[0]}"
    return recording, "yes" if recording.is_graph else "no"


def aims(rows: Sequence[Row], absent: dict[str, str]) -> list[Aim]:
    """Return what issue and documents promise, and whether the rows bear it out."""
    measured = [row for row in rows if row.get("cold_us")]
    return [_near_the_floor(measured), _ahead(measured, absent), _never_slower(measured)]


def _of(row: Row) -> Floor:
    heads, kv_heads = map(int, row["heads"].split("/"))
    return Floor(Tree.parse(row["tree"]), AttentionShape(heads, kv_heads, row["dim"]))


def _near_the_floor(rows: Sequence[Row]) -> Aim:
    promise = "shared-prefix decode reaches 70 % of the byte floor where queries of a KV head x group <= 200"
    shares = {
        f"{row['tree']} {row['heads']}": row["floor_share"]
        for row in rows
        if row["system"] == SHARED and _of(row).is_byte_bound and _of(row).tree.is_shared
    }
    if not shares:
        return Aim(promise, None, "no such shape was measured")
    return Aim(
        promise, min(shares.values()) >= 0.7, ", ".join(f"{name}: {share:.0%}" for name, share in shares.items())
    )


def _ahead(rows: Sequence[Row], absent: dict[str, str]) -> Aim:
    promise = "ahead of each baseline at every shared shape with prefix >= 512 and batch >= 8"
    behind, num_shapes = [], 0
    for tree, heads in dict.fromkeys((row["tree"], row["heads"]) for row in rows):
        shape = Tree.parse(tree)
        times = {row["system"]: row["cold_us"] for row in rows if (row["tree"], row["heads"]) == (tree, heads)}
        own = times.pop(SHARED, math.inf)
        if shape.prefix_keys >= 512 and shape.num_requests >= 8 and times:
            num_shapes += 1
            behind += [f"{name} at {tree} {heads}: {time / own:.2f} x" for name, time in times.items() if time <= own]
    if behind:
        return Aim(promise, False, "behind " + ", ".join(behind))
    seen = f"of all that were measured at {num_shapes} shapes"
    if absent:
        return Aim(promise, None, f"{seen}; absent: {', '.join(absent)}")
    return Aim(promise, True if num_shapes else None, seen)


def _never_slower(rows: Sequence[Row]) -> Aim:
    promise = "within 3 % of plain paged decode where nothing is shared"
    times = {(row["tree"], row["heads"], row["system"]): row["cold_us"] for row in rows}
    ratios = {
        f"{tree} {heads}": own / times[tree, heads, PAGED]
        for (tree, heads, system), own in times.items()
        if system == SHARED and not Tree.parse(tree).is_shared and (tree, heads, PAGED) in times
    }
    if not ratios:
        return Aim(promise, None, "no such shape was measured")
    return Aim(
        promise, max(ratios.values()) <= 1.03, ", ".join(f"{name}: {ratio:.3f} x" for name, ratio in ratios.items())
    )
