"""Tables of ids and numbers that stay readable in a narrow terminal, and can be copied from."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

GAP = 2
"""Blanks between two columns."""
MIN_FLEXIBLE = 24


@dataclasses.dataclass(frozen=True, slots=True)
class Column:
    """A column. Where room is wanting, columns go in order of ``dispensable``, the highest first; 0 never goes.

    Cells stand in one line and are never cut, so that ids can be copied; those of a ``flexible`` column are folded.
    """

    title: str
    dispensable: int = 0
    right: bool = False
    flexible: bool = False


class Listing:
    """Rows of cells (with Rich markup) under a title; without rows, ``empty`` instead.

    Columns that are empty in every row are not shown; those that are left out for want of room are named.
    """

    def __init__(self, title: str, columns: Sequence[Column], *, empty: str = "nothing") -> None:
        self.title = title
        self.columns = tuple(columns)
        self.empty = empty
        self._rows: list[list[Text]] = []

    def add(self, *cells: str) -> None:
        """Add a row."""
        self._rows.append([Text.from_markup(cell) for cell in cells])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text.from_markup(f"[bold]{self.title}[/]")
        if not self._rows:
            yield Text(self.empty)
            return
        places = [place for place in range(len(self.columns)) if any(row[place].plain for row in self._rows)]
        left_out: list[str] = []
        while self._width(places) > options.max_width:
            place = max(places, key=lambda place: self.columns[place].dispensable)
            if not self.columns[place].dispensable:
                break
            places.remove(place)
            left_out.append(self.columns[place].title)
        yield self._table(places)
        if left_out:
            yield Text(f"not shown for want of room: {', '.join(left_out)}", style="dim")

    def _width(self, places: Sequence[int]) -> int:
        return sum(self._column_width(place) for place in places) + GAP * (len(places) - 1)

    def _column_width(self, place: int) -> int:
        column = self.columns[place]
        width = max(cell_len(line) for row in self._rows for line in row[place].plain.split("\n"))
        return max(cell_len(column.title), min(width, MIN_FLEXIBLE) if column.flexible else width)

    def _table(self, places: Sequence[int]) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="dim")
        for place in places:
            column = self.columns[place]
            table.add_column(
                column.title,
                justify="right" if column.right else "left",
                no_wrap=not column.flexible,
                min_width=None if column.flexible else self._column_width(place),
                overflow="fold",
            )
        for row in self._rows:
            table.add_row(*(row[place] for place in places))
        return table
