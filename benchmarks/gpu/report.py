"""What a benchmark found: rows, printed as a table and written as JSON, and which of the aims hold."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
RESULTS = Path(__file__).parents[1] / "results"


@dataclasses.dataclass(frozen=True, slots=True)
class Aim:
    """Something promised. ``holds`` is None where what it is about was not measured."""

    promise: str
    holds: bool | None
    seen: str


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """Of one benchmark: ``columns`` are those of the table, ``absent`` says of each system left out why."""

    name: str
    rows: list[Row]
    columns: Mapping[str, str]
    """Fields of the rows that the table shows, and the format of each."""
    absent: dict[str, str]
    aims: list[Aim]
    figures: Row = dataclasses.field(default_factory=dict)
    """What is about the whole run."""

    def text(self) -> str:
        lines = [f"{self.name}: {', '.join(f'{key} {_shown(value)}' for key, value in self.figures.items())}"]
        lines.append(table(self.rows, self.columns))
        lines += [f"{system} is absent: {reason}" for system, reason in self.absent.items()]
        words = {True: "holds", False: "DOES NOT HOLD", None: "not measured"}
        lines += [f"aim {words[aim.holds]}: {aim.promise} ({aim.seen})" for aim in self.aims]
        return "\n".join(lines)

    def write(self, about: Mapping[str, str | None], folder: Path = RESULTS) -> Path:
        """Write everything to ``gpu_<name>.json``; return its path."""
        path = folder / f"gpu_{self.name}.json"
        head = {
            "about": dict(about),
            "figures": self.figures,
            "absent": self.absent,
            "aims": [dataclasses.asdict(aim) for aim in self.aims],
        }
        rows = ",\n".join(json.dumps(_rounded(row)) for row in self.rows)  # a line each, for diffs
        path.write_text(json.dumps(head, indent=2)[:-2] + f',\n  "rows": [\n{rows}\n]\n}}\n')
        return path


def table(rows: Sequence[Row], columns: Mapping[str, str]) -> str:
    """Return the rows as text, a column for each of ``columns``: "-" is none, and what failed says why."""
    cells = [
        list(columns),
        *(["-" if row.get(name) is None else format(row[name], how) for name, how in columns.items()] for row in rows),
    ]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    is_text = [all(isinstance(row.get(name), str | None) for row in rows) for name in columns]
    lines = []
    for line, row in zip(cells, [{}, *rows], strict=True):
        padded = [
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(line, widths, is_text, strict=True)
        ]
        lines.append("  ".join(padded).rstrip() + (f"  {row['error']}" if row.get("error") else ""))
    return "\n".join(lines)


def _rounded(row: Row) -> Row:
    """Return the row with six digits of each number: more are noise."""
    return {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in row.items()}


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
