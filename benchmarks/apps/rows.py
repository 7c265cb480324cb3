"""From runs to rows: medians over the repeats, their spread, and how many times longer than ours a system took."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import orjson

from benchmarks.apps.bench import Outcome
from benchmarks.apps.systems import OURS

Row = dict[str, Any]
KEYS = ("experiment", "point", "mode", "system", "feature_off")
"""What a row is about; the rest is what was measured."""


def row_of(experiment: str, point: str, mode: str, system: str, feature_off: str, outcomes: Sequence[Outcome]) -> Row:
    """Return a row: the median over the repeats, and (largest - smallest) / median; extras by their medians."""
    seconds = [outcome.seconds for outcome in outcomes]
    median = statistics.median(seconds)
    row: Row = {
        "experiment": experiment,
        "point": point,
        "mode": mode,
        "system": system,
        "feature_off": feature_off,
        "seconds_median": round(median, 4),
        "spread": round((max(seconds) - min(seconds)) / median, 4),
        "ratio_to_ours": None,
        "repeats": len(seconds),
    }
    for name in outcomes[0].extras:
        values = [outcome.extras[name] for outcome in outcomes if name in outcome.extras]
        row[name] = _median(values)
    return row


def _median(values: Sequence[Any]) -> Any:
    if isinstance(values[0], list):
        return [round(statistics.median(column), 4) for column in zip(*values, strict=True)]
    return round(statistics.median(values), 4)


def with_ratios(rows: Iterable[Row]) -> list[Row]:
    """Set ``ratio_to_ours`` of every row: its seconds over those of ours, all features on, at the same point."""
    rows = list(rows)
    own = {
        (row["experiment"], row["point"], row["mode"]): row["seconds_median"]
        for row in rows
        if row["system"] == OURS and not row["feature_off"]
    }
    for row in rows:
        base = own.get((row["experiment"], row["point"], row["mode"]))
        row["ratio_to_ours"] = round(row["seconds_median"] / base, 4) if base else None
    return rows


def merge(path: Path, rows: Iterable[Row]) -> list[Row]:
    """Write ``rows`` into the list at ``path``, each in the place of the one with the same keys; return all of them."""
    merged = {tuple(row[key] for key in KEYS): row for row in [*read(path), *rows]}
    ordered = with_ratios(row for _, row in sorted(merged.items(), key=lambda item: item[0]))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_bytes(b"[\n" + b",\n".join(orjson.dumps(row) for row in ordered) + b"\n]\n")
    partial.rename(path)
    return ordered


def read(path: Path) -> list[Row]:
    """Return the rows at ``path``, none if there is no such file."""
    rows: list[Row] = orjson.loads(path.read_bytes()) if path.exists() else []
    return rows


def digest_of(digests: Sequence[str]) -> str:
    """Return one digest of all outputs of a run, which two systems share if they generated the same."""
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()[:16]
