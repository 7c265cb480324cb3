"""``python -m parrot_workers.simulation``, which is ``parrot-mq simulate``: which engines does a load need?"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import logging
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

import orjson

from parrot_mq.entry import explain
from parrot_mq.errors import ConfigError
from parrot_workers.worker.options import positive

MAX_ENGINES = 256


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate and print; return the exit status: 0, or that of ``explain``."""
    arguments = sys.argv[1:] if arguments is None else arguments
    verbose = "--verbose" in arguments
    logging.basicConfig(level=logging.INFO if verbose else logging.ERROR, format="%(name)s: %(message)s")
    try:
        given = _parser().parse_args(arguments)
        missing = [module for module in ("fakeredis", "lupa") if importlib.util.find_spec(module) is None]
        if missing:
            raise ConfigError(f"a simulation needs {' and '.join(missing)}: pip install 'parrot-mq[sim]'")
        print(plan(given))
    except Exception as error:  # noqa: BLE001 - the process's outermost frame: an error becomes a line and a status
        return explain(error, verbose)
    return 0


def plan(given: argparse.Namespace) -> str:
    """Simulate each number of engines; return the table or the JSON. Progress goes to standard error.

    Raises ConfigError for a workload, a profile or numbers that cannot be, and what ``simulate`` raises.
    """
    from parrot_workers.simulation.planning.capacity import Goal, as_json, measure, smallest
    from parrot_workers.simulation.planning.drawn import draw_arrivals
    from parrot_workers.simulation.planning.report import table, verdict
    from parrot_workers.simulation.planning.workload import load_workload
    from parrot_workers.simulation.profiles import load_profile
    from parrot_workers.simulation.setup import EngineSetup

    workload, profile, counts = load_workload(given.workload), load_profile(given.profile), engine_counts(given.engines)
    overrides = {"arrivals_per_s": given.arrivals_per_s, "num_applications": given.num_applications}
    workload = dataclasses.replace(workload, **{name: value for name, value in overrides.items() if value is not None})
    goal = Goal(given.p50_s, given.p95_s, given.ttft_p95_s, given.tpot_p95_ms)
    setup = EngineSetup(
        profile,
        prefix_caching=given.prefix_caching,
        max_running_tokens=given.max_running_tokens,
        max_num_batched_tokens=given.max_num_batched_tokens,
    )
    arrivals = draw_arrivals(workload, given.seed)
    outcomes = []
    for count in counts:
        started_s = time.perf_counter()
        outcome = measure(arrivals, setup, count, seed=given.seed, real_limit_s=given.real_limit_s)
        outcomes.append(outcome)
        took_s = time.perf_counter() - started_s
        print(f"{count} engines: {outcome.span_s:.0f} s simulated in {took_s:.1f} s", file=sys.stderr, flush=True)
    if not given.json:
        head = (
            f"{workload.name}: {workload.num_applications} applications, {workload.arrivals_per_s:g}/s, {profile.name}"
        )
        return f"{head}\n\n{table(outcomes, goal)}\n\n{verdict(outcomes, goal)}"
    answer: dict[str, Any] = {
        "workload": dataclasses.asdict(workload),
        "profile": profile.name,
        "seed": given.seed,
        "goal": dataclasses.asdict(goal),
        "outcomes": [as_json(outcome, goal) for outcome in outcomes],
        "smallest": smallest(outcomes, goal),
    }
    return orjson.dumps(answer, option=orjson.OPT_INDENT_2).decode()


def engine_counts(text: str) -> list[int]:
    """Return the numbers in a text such as ``1-4`` or ``1,2,8``, in order. Raises ConfigError for any other."""
    counts: set[int] = set()
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,4})\s*(?:-\s*(\d{1,4})\s*)?", part)
        if found is None:
            raise ConfigError(f"--engines {text!r} is no list of numbers; write 4, 1-4 or 1,2,8")
        first, last = int(found[1]), int(found[2] or found[1])
        if not 1 <= first <= last <= MAX_ENGINES:
            raise ConfigError(f"--engines {text!r}: {part.strip()} is not within 1 to {MAX_ENGINES}")
        counts.update(range(first, last + 1))
    return sorted(counts)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="parrot-mq simulate",
        description="Simulate a load on so many engines, and say which number of them it needs. Scheduler, store and "
        "workers are the real ones, engines cost what a profile says, and time is virtual: docs/simulation.md.",
        epilog="`python -m parrot_workers.simulation` is the same.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("workload", help="a .toml or .json file, or chain, chat, map-reduce, mixed, shared-prompt")
    add("--profile", default="a100-13b", help="a model on a machine: a name or a .json file; default: %(default)s")
    add("--engines", default="1-4", metavar="N", help="how many: 4, 1-4 or 1,2,8; default: %(default)s")
    add("--seed", type=int, default=0, metavar="N", help="of arrivals, lengths and texts; default: %(default)s")
    add("--arrivals-per-s", type=positive(float), metavar="X", help="instead of the workload's")
    add("--num-applications", type=positive(int), metavar="N", help="instead of the workload's")
    add("--no-prefix-caching", dest="prefix_caching", action="store_false", help="engines that forget every prompt")
    add("--max-running-tokens", type=positive(int), default=0, metavar="N", help="tokens that an engine runs at once")
    add("--max-num-batched-tokens", type=positive(int), default=2048, metavar="N", help="tokens that a step computes")
    add("--json", action="store_true", help="print JSON")
    add("--real-limit-s", type=positive(float), default=600.0, metavar="S", help="give a number of engines up after")
    add("--verbose", action="store_true", help="log what the parts say, and show the traceback of an error")
    goal = parser.add_argument_group("what is good enough")
    goal.add_argument("--p50-s", type=positive(float), metavar="S", help="half of the answers are there after")
    goal.add_argument("--p95-s", type=positive(float), metavar="S", help="95 %% of the answers are there after")
    goal.add_argument("--ttft-p95-s", type=positive(float), metavar="S", help="95 %% of the answers have begun after")
    goal.add_argument("--tpot-p95-ms", type=positive(float), metavar="MS", help="95 %%: milliseconds between tokens")
    return parser


if __name__ == "__main__":
    sys.exit(main())
