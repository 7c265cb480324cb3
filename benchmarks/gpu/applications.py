"""What sharing is worth to applications: our engine without it, with shared pages, and with shared-prefix attention.

``copilot``: many users behind one long system prompt. ``multi_agent``: groups of agents whose prompts begin with the
same rules, then with their group's documents. The common parts have been run before the clock starts, except for
``sharing_off``, which computes every prompt whole. ``paged`` keeps common pages once and reads them for every request;
``kernel`` also reads them once.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence

from benchmarks.engine.peers import PEERS
from benchmarks.engine.workload import NUM_UNSPOKEN_IDS, Requests
from benchmarks.gpu.models import SHAPES
from benchmarks.gpu.report import Aim, Report, Row
from benchmarks.gpu.run import Run
from benchmarks.gpu.serving import Limits, ServedSystem, Work, checked, measured
from benchmarks.gpu.tree import Tree
from parrot_kernels.gpu.sharing_cost import ENVIRONMENT

OFF, PAGED, KERNEL = "sharing_off", "paged", "kernel"
ALONE = {ENVIRONMENT: "off"}
GIB = 1 << 30
SYSTEMS = (
    # Each of 32 prompts has its own keys: 26 GiB of the 8B shape.
    ServedSystem(OFF, PEERS["parrot_mq"], {"prefix_caching": False, "kv_memory_bytes": 30 * GIB}, ALONE),
    ServedSystem(PAGED, PEERS["parrot_mq"], environment=ALONE),
    ServedSystem(KERNEL, PEERS["parrot_mq"]),
)
COPILOT = "copilot"
APPLICATIONS = {COPILOT: Tree((1, 32), (6144, 128)), "multi_agent": Tree((1, 4, 32), (1024, 2048, 128))}
NUM_OUTPUT = 128
LIMITS = Limits(max_num_seqs=32, max_len=8192, max_batch_tokens=4096, kv_memory_bytes=8 * GIB)
CHECKS = {COPILOT: Tree((1, 4), (80, 16)), "multi_agent": Tree((1, 2, 4), (16, 16, 16))}
"""The copilot's prefix is as long as it must be to be read once; trees are the kernel benchmark's to check."""
CHECK_OUTPUT = 2
COLUMNS = {
    "model": "",
    "dtype": "",
    "workload": "",
    "batch": "",
    "system": "",
    "output_tokens_per_s": ",.0f",
    "spread": ".0%",
    "over_paged": ".2f",
    "decode_tokens_per_s": ",.0f",
    "decode_over_paged": ".2f",
    "ttft_p50_ms": ".1f",
    "agreement": ".1%",
    "rounds": "",
}


def measure(run: Run) -> Report:
    """Check in small that all three generate the same tokens, then measure the models until the time is over."""
    # The interpreter's tokens are compared with those of the CPU's own kernels, which also saves a third of the time.
    systems = [system.interpreted() if run.is_dry and system.name != OFF else system for system in SYSTEMS]
    rows, wrong = checked(run, systems, works("check", CHECKS, CHECK_OUTPUT), systems[0])
    right = [system for system in systems if system.name not in wrong]
    rows += measured(
        run, right, LIMITS, OFF, functools.partial(works, applications=APPLICATIONS, num_output=NUM_OUTPUT)
    )
    compare(rows)
    return Report("applications", rows, COLUMNS, wrong, [] if run.is_dry else aims(rows))


def works(model: str, applications: dict[str, Tree], num_output: int) -> list[Work]:
    """Return the applications as work."""

    def work(name: str, tree: Tree) -> Work:
        def requests(seed: str) -> Sequence[Requests]:
            return batches(tree, SHAPES[model].vocab_size, f"{name} {seed}", num_output)

        return Work(name, tree.num_requests, requests)

    return [work(name, tree) for name, tree in applications.items()]


def batches(tree: Tree, vocab_size: int, seed: str, num_output: int) -> list[Requests]:
    """Return the batch whose prompts are the paths of ``tree``.

    Its prefix is the first of the paths above the leaves; if there are more, a batch of those comes before.
    """
    source = random.Random(seed)
    first = min(NUM_UNSPOKEN_IDS, vocab_size // 2)
    prompts: list[list[int]] = [[]]
    above = prompts
    for width, length in zip(tree.widths, tree.lengths, strict=True):
        above, children = prompts, width // len(prompts)
        prompts = [
            path + [source.randrange(first, vocab_size) for _ in range(length)]
            for path in prompts
            for _ in range(children)
        ]
    first_path, *other_paths = above
    before = [Requests(first_path, other_paths, [0.0] * len(other_paths), 2)] if other_paths else []
    return [*before, Requests(first_path, prompts, [0.0] * len(prompts), num_output)]


def compare(rows: Sequence[Row]) -> None:
    """Add to each row how many times as fast as ``paged`` it is, in all and while decoding."""
    paged = {(row["model"], row["workload"]): row for row in rows if row.get("system") == PAGED and "error" not in row}
    for row in rows:
        base = paged.get((row["model"], row.get("workload")))
        if base is None or "error" in row:
            continue
        for name, over in (("output_tokens_per_s", "over_paged"), ("decode_tokens_per_s", "decode_over_paged")):
            row[over] = row[name] / base[name] if row[name] and base[name] else None


def aims(rows: Sequence[Row]) -> list[Aim]:
    promise = "copilot at batch 32 is 1.7 x as fast with the kernel as with shared pages alone"
    ratios = {
        row["model"]: row["over_paged"]
        for row in rows
        if row.get("system") == KERNEL and row.get("workload") == COPILOT and row.get("over_paged")
    }
    ratios.pop("check", None)
    if not ratios:
        return [Aim(promise, None, "it was not measured")]
    seen = ", ".join(f"{model}: {ratio:.2f} x" for model, ratio in ratios.items())
    return [Aim(promise, min(ratios.values()) >= 1.7, seen)]
