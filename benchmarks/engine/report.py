"""``python -m benchmarks.engine.report FILE``: the rows of a results file as a Markdown table, a line for each case."""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import orjson

from benchmarks.engine.figures import KEYS, Row

OWN = "parrot_mq"
OTHERS = ("vllm_cpu", "llama_cpp", "transformers", "transformers_cb")
WORKLOADS = ("shared", "unshared", "long_prefix", "poisson")


def markdown(rows: Sequence[Row]) -> str:
    """Return our output tokens/s and their spread, and how many times as much that is as the others'; "-" is none."""
    cases: defaultdict[tuple[str, str, str, int], dict[str, Row]] = defaultdict(dict)
    for row in rows:
        cases[tuple(row[key] for key in KEYS[1:])][row["system"]] = row
    lines = [
        f"| model, workload, batch | {OWN} tokens/s | TTFT p50 | " + " | ".join(f"x {name}" for name in OTHERS) + " |",
        "|---" * (3 + len(OTHERS)) + "|",
    ]
    for case in sorted(cases, key=lambda case: (case[0] != "s", case[1], WORKLOADS.index(case[2]), case[3])):
        systems = cases[case]
        model, dtype, workload, batch = case
        own = systems.get(OWN, {})
        ratios = [_ratio(own, systems.get(name, {})) for name in OTHERS]
        lines.append(
            f"| {model} {dtype}, {workload}, {batch} | "
            + (
                f"{own['output_tokens_per_s']:,.0f} ± {own['spread'] / 2:.0%}"
                if own.get("output_tokens_per_s")
                else "-"
            )
            + (f" | {own['ttft_p50_ms']:.0f} ms | " if own.get("ttft_p50_ms") else " | - | ")
            + " | ".join(ratios)
            + " |"
        )
    return "\n".join(lines)


def _ratio(own: Row, other: Row) -> str:
    rates = own.get("output_tokens_per_s"), other.get("output_tokens_per_s")
    return f"{rates[0] / rates[1]:.2f}" if rates[0] and rates[1] else "-"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine.report", description=__doc__)
    parser.add_argument("file", type=Path)
    print(markdown(orjson.loads(parser.parse_args().file.read_bytes())))


if __name__ == "__main__":
    main()
