"""Rows found by what they are about, and lines of markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.apps.rows import Row

Found = dict[tuple[str, str, str, str, str], Row]
"""Rows by experiment, point, mode, system, feature off."""


def by_key(rows: Iterable[Row]) -> Found:
    return {(r["experiment"], r["point"], r["mode"], r["system"], r["feature_off"]): r for r in rows}


def header(cells: Sequence[str]) -> list[str]:
    """Return the first two lines of a table."""
    return [line(cells), "|" + "---|" * len(cells)]


def line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def seconds(row: Row) -> str:
    """Return a row's median and half its spread."""
    return f"{row['seconds_median']:.2f} s ± {row['spread'] / 2:.0%}"


def folded(summary: str, text: str) -> str:
    """Return ``text`` as a part that a reader opens."""
    return f"<details><summary>{summary}</summary>\n\n{text}\n</details>\n"
