"""From runs to rows: medians over the rounds, and how far the rounds lie apart."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

KEYS = ("system", "model", "dtype", "workload", "batch")
"""What a row is about; the rest is what was measured."""
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class RunFigures:
    """One run. ``same`` is the part of requests whose tokens are those of the reference; None without one."""

    output_tokens_per_s: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    decode_tokens_per_s: float | None
    same: float | None = None

    @classmethod
    def of(cls, seen: dict[str, Any], reference: Sequence[Sequence[int]] | None = None) -> RunFigures:
        """Summarise what ``serve.run`` saw."""
        outputs = seen["outputs"]
        same = None
        if reference is not None:
            same = sum(ours == theirs for ours, theirs in zip(outputs, reference, strict=True)) / len(outputs)
        return cls(
            output_tokens_per_s=sum(map(len, outputs)) / seen["wall_s"],
            ttft_p50_ms=statistics.median(seen["ttft_s"]) * 1000,
            ttft_p99_ms=quantile(seen["ttft_s"], 0.99) * 1000,
            decode_tokens_per_s=seen["decode_tokens_per_s"],
            same=same,
        )


def quantile(values: Sequence[float], q: float) -> float:
    """Return the q-quantile by the nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def summary(runs: Sequence[RunFigures]) -> Row:
    """Return the medians of ``runs``, and ``spread``: (largest - smallest) / median of the throughput."""
    row: Row = {}
    for field in dataclasses.fields(RunFigures):
        values = [value for run in runs if (value := getattr(run, field.name)) is not None]
        row[field.name] = round(statistics.median(values), 3) if values else None
    rates = [run.output_tokens_per_s for run in runs]
    row["spread"] = round((max(rates) - min(rates)) / row["output_tokens_per_s"], 3)
    row["rounds"] = len(runs)
    return row


def merge(path: Path, rows: Sequence[Row]) -> None:
    """Write ``rows`` into the list at ``path``: each takes the place of the one with the same keys."""
    known = orjson.loads(path.read_bytes()) if path.exists() else []
    merged = {tuple(row[key] for key in KEYS): row for row in [*known, *rows]}
    lines = b",\n".join(orjson.dumps(row) for _, row in sorted(merged.items(), key=lambda item: item[0]))
    path.write_bytes(b"[\n" + lines + b"\n]\n")


def table(rows: Sequence[Row], own: str = "parrot_mq") -> str:
    """Return a readable table: throughput, spread, median TTFT, and ``own``'s throughput over the system's."""
    lines = []
    cases = sorted({(row["model"], row["dtype"], row["workload"], row["batch"]) for row in rows})
    for case in cases:
        mine = [row for row in rows if tuple(row[key] for key in KEYS[1:]) == case]
        base = next((row["output_tokens_per_s"] for row in mine if row["system"] == own), None)
        lines.append("{} {}, {}, batch {}".format(*case))
        for row in sorted(mine, key=lambda row: -(row["output_tokens_per_s"] or 0)):
            if error := row.get("error"):
                lines.append(f"  {row['system']:16} failed: {error}")
                continue
            rate, same = row["output_tokens_per_s"], row["same"]
            lines.append(
                f"  {row['system']:16} {rate:8.0f} tokens/s"
                + (f"  spread {row['spread']:4.0%}" if row["rounds"] > 1 else "  one round  ")
                + f"  TTFT p50 {row['ttft_p50_ms']:7.0f} p99 {row['ttft_p99_ms']:7.0f} ms"
                + (f"  decode {row['decode_tokens_per_s']:7.0f}" if row["decode_tokens_per_s"] else "")
                + (f"  {own} x {base / rate:.2f}" if base else "")
                + (f"  same tokens {same:.0%}" if same is not None else "")
                + (f"  of bandwidth {row['bandwidth_share']:.0%}" if "bandwidth_share" in row else "")
            )
    return "\n".join(lines)
