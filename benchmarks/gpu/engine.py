"""Our engine beside transformers, and beside what the memory's bandwidth allows, on Llamas of 1B and 8B shape.

``transformers`` is ``generate`` on a static batch, which computes every prompt whole; ``transformers_cb`` is its
continuous batching over a paged cache. Prompts are token ids, outputs greedy and exactly as long as asked. A shared
prefix has been run once before the clock starts. Decoding is measured from the last request's first token on.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from benchmarks.engine.peers import PEERS
from benchmarks.engine.shapes import ModelShape
from benchmarks.engine.workload import Case, Requests, Workload, requests_of
from benchmarks.gpu import bandwidth
from benchmarks.gpu.models import ITEM_BYTES, SHAPES
from benchmarks.gpu.report import Aim, Report, Row
from benchmarks.gpu.run import Run
from benchmarks.gpu.serving import Limits, ServedSystem, Work, checked, measured

OURS, OURS_FP8 = "parrot_mq", "parrot_mq_fp8"
REFERENCE = ServedSystem("transformers", PEERS["transformers"])
SYSTEMS = (
    ServedSystem(OURS, PEERS["parrot_mq"]),
    # Eight bits of a key are not sixteen: most tokens are the same, not all.
    ServedSystem(
        OURS_FP8,
        PEERS["parrot_mq"],
        setup={"kv_dtype": "fp8", "kv_memory_bytes": 6 << 30},
        check_dtype="bf16",
        least_agreement=0.5,
    ),
    REFERENCE,
    ServedSystem("transformers_cb", PEERS["transformers_cb"]),
)
WORKLOADS = (Workload("shared", 512, 64), Workload("unshared", 0, 576))
BATCHES = (1, 8, 32, 128)
LIMITS = Limits(max_num_seqs=128, max_len=704, max_batch_tokens=2048, kv_memory_bytes=11 << 30)
"""11 GiB hold 90,000 tokens of the 8B shape, of which 128 requests need 82,000: all systems fit 139 GiB together."""
CHECK_WORKLOADS = (Workload("shared", 32, 16, 4), Workload("unshared", 0, 32, 4))
CHECK_BATCHES = (1, 4)
COLUMNS = {
    "model": "",
    "dtype": "",
    "workload": "",
    "batch": "",
    "system": "",
    "output_tokens_per_s": ",.0f",
    "spread": ".0%",
    "decode_tokens_per_s": ",.0f",
    "floor_tokens_per_s": ",.0f",
    "bandwidth_share": ".0%",
    "ttft_p50_ms": ".1f",
    "agreement": ".1%",
    "rounds": "",
}


def measure(run: Run) -> Report:
    """Check tokens in small, then measure the models until the time is over."""
    rate = bandwidth.bytes_per_s(run.device, run.new_clock())
    systems = list(SYSTEMS)
    if run.is_dry:
        systems = [
            system.interpreted() if system.name == OURS else system for system in SYSTEMS if system.name != OURS_FP8
        ]
    reference = next(system for system in systems if system.name == REFERENCE.name)
    rows, wrong = checked(run, systems, works("check", CHECK_WORKLOADS, CHECK_BATCHES), reference)
    right = [system for system in systems if system.name not in wrong]
    rows += measured(run, right, LIMITS, reference.name, functools.partial(works, workloads=WORKLOADS, batches=BATCHES))
    for row in rows:
        if row.get("decode_tokens_per_s"):
            row |= against_floor(row, rate)
    return Report("engine", rows, COLUMNS, wrong, [] if run.is_dry else aims(rows), {"bytes_per_s": rate})


def works(model: str, workloads: Sequence[Workload], batches: Sequence[int]) -> list[Work]:
    """Return the workloads at every batch size."""

    def work(case: Case) -> Work:
        def requests(seed: str) -> Sequence[Requests]:
            return [requests_of(case, SHAPES[model].vocab_size, seed)]

        return Work(case.workload.name, case.batch, requests)

    return [work(Case(workload, batch)) for workload in workloads for batch in batches]


def against_floor(row: Row, bytes_per_s: float) -> Row:
    """Return how fast decoding could be if reading memory were all it takes, and which part of that it is."""
    workloads = CHECK_WORKLOADS if row["model"] == "check" else WORKLOADS
    workload = next(workload for workload in workloads if workload.name == row["workload"])
    kv_item_bytes = 1 if row["system"] == OURS_FP8 else ITEM_BYTES[row["dtype"]]
    size = step_bytes(SHAPES[row["model"]], workload, row["batch"], ITEM_BYTES[row["dtype"]], kv_item_bytes)
    floor = row["batch"] * bytes_per_s / size
    return {"floor_tokens_per_s": floor, "bandwidth_share": row["decode_tokens_per_s"] / floor}


def step_bytes(shape: ModelShape, workload: Workload, batch: int, item_bytes: int, kv_item_bytes: int) -> float:
    """Return what a step of decoding must read: the weights and the cache, a shared prefix once."""
    keys = workload.num_shared + batch * (workload.num_own + workload.num_output / 2)
    return shape.num_step_weights * item_bytes + keys * shape.kv_values_per_token * kv_item_bytes


def aims(rows: Sequence[Row]) -> list[Aim]:
    promise = "8B decode at batch 1 reaches 80 % of the memory's bandwidth"
    shares = [
        (row["workload"], row["bandwidth_share"])
        for row in rows
        if (row.get("system"), row.get("model"), row.get("batch")) == (OURS, "8b", 1) and row.get("bandwidth_share")
    ]
    if not shares:
        return [Aim(promise, None, "it was not measured")]
    seen = ", ".join(f"{name}: {share:.0%}" for name, share in shares)
    return [Aim(promise, min(share for _, share in shares) >= 0.8, seen)]
