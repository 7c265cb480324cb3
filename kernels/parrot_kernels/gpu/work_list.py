"""From the pieces of a plan to the work list of the attention kernel: a pure function over lists of numbers.

A *tile* is some query rows of a piece with all query heads of one KV head: ``fold`` packed rows for each query row, so
that a key is read once for all of them. A tile is narrow (one step of the tensor cores) where its rows fit, else wide.
An *item* is a tile and a range of its piece's keys; the kernel computes each item once for every KV head.

Long pieces are cut into ranges, so that there is work for every multiprocessor (see ``splits``).
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from parrot_kernels.attention_plan import BLOCK_SIZE, AttentionPlan, Piece
from parrot_kernels.gpu.sharing_cost import AttentionShape, SharingCost
from parrot_kernels.gpu.splits import TileSize, best_target, range_keys

INVARIANT_RANGE = 1024
"""Keys of a range where ranges must not depend on the batch."""


class Item(NamedTuple):
    """What one program computes at a time, for one KV head."""

    first_entry: int
    """Of the tile's query rows in ``WorkList.rows``."""
    num_entries: int
    """Query rows of the tile."""
    first_block: int
    """Of the range in ``WorkList.blocks``."""
    first_key: int
    """Position of the range's first key, a multiple of the block size."""
    num_keys: int
    """Keys of the range at most, whole blocks: a row sees those up to its position."""
    ordinal: int
    """Number of the part that it makes of each of its rows."""


class Tail(NamedTuple):
    """The end of a sequence's own keys, where blocks can be added while it decodes."""

    end: int
    """Behind its last block in ``WorkList.blocks``."""
    spare: int
    """Blocks for which there is room."""
    items: tuple[int, ...]
    """The items that read the last block."""


@dataclasses.dataclass(frozen=True, slots=True)
class Tiling:
    """How rows and keys are cut. ``wide`` packed rows a tile (or the shape's narrow tile); ranges for ``processors``.

    ``slack`` blocks are kept free behind the keys of each decoding sequence. With ``split_keys`` false no piece is
    split, so that no row of a batch without shared prefixes has parts.
    """

    shape: AttentionShape
    wide: int
    processors: int
    slack: int = 0
    split_keys: bool = True

    def entries(self, num_rows: int) -> int:
        """Return the query rows of a tile of a piece with ``num_rows``."""
        shape = self.shape
        width = shape.narrow if num_rows * shape.fold <= shape.narrow else self.wide
        return width // shape.fold

    def tile_rows(self, num_entries: int) -> int:
        """Return the rows, padding included, of a tile with ``num_entries`` query rows."""
        return self.shape.narrow if num_entries * self.shape.fold <= self.shape.narrow else self.wide


@dataclasses.dataclass(frozen=True, slots=True)
class WorkList:
    """The items, the most work first, and what they point at.

    Row r (of the flat batch) has ``part_count[r]`` parts, at least one. If it is one, the item writes the result;
    if more, they are ``part_start[r]`` and on, in the order of the keys.
    """

    items: list[Item]
    rows: list[int]
    blocks: list[int]
    part_start: list[int]
    part_count: list[int]
    num_parts: int
    tails: dict[int, Tail]
    """By the first query row of the sequence; decoding sequences that have keys of their own."""

    @classmethod
    def of(cls, plan: AttentionPlan, tiling: Tiling, cost: SharingCost) -> WorkList:
        """Cut ``plan``. If it does not share, its ranges are fixed: a row then does not depend on its neighbours."""
        shape = tiling.shape
        pieces = plan.cut(lambda keys, rows, readers: cost.pays(shape, tiling.wide, keys, rows, readers))
        pieces.sort(key=lambda piece: piece.first_key)
        tiles = [tile for piece in pieces for tile in _tiles(piece, plan.positions, tiling)]
        sizes = collections.Counter(
            TileSize(tile.longest, tile.num_keys, tiling.tile_rows(len(tile.rows)), len(tile.rows) * shape.fold)
            for tile in tiles
        )
        targets = best_target(sizes, shape, cost, tiling.processors) if plan.share and tiling.split_keys else {}
        weights = {rows: cost.key_weight(rows, shape) for rows in (shape.narrow, tiling.wide)}
        builder = _Builder(plan.num_tokens, tiling, weights, targets, plan.share)
        for tile in tiles:
            builder.add(tile)
        return builder.finish()


@dataclasses.dataclass(slots=True)
class _Tile:
    piece: Piece
    rows: Sequence[int]
    num_keys: int
    is_first: bool
    """Of its piece."""

    @property
    def longest(self) -> int:
        """Keys of the piece, whole blocks."""
        return len(self.piece.blocks) * BLOCK_SIZE


def _tiles(piece: Piece, positions: Sequence[int], tiling: Tiling) -> list[_Tile]:
    """Cut the rows of ``piece``. Tiles of a prefill end with the last key that one of their rows sees."""
    step = tiling.entries(len(piece.rows))
    tiles = []
    for start in range(0, len(piece.rows), step):
        rows = piece.rows[start : start + step]
        num_keys = len(piece.blocks) * BLOCK_SIZE
        if piece.is_prefill:
            num_keys = -(-(positions[rows[-1]] + 1) // BLOCK_SIZE) * BLOCK_SIZE - piece.first_key
        tiles.append(_Tile(piece, rows, num_keys, start == 0))
    return tiles


class _Builder:
    """Takes the tiles in the order of their keys, and lays out what the items point at."""

    def __init__(
        self,
        num_rows: int,
        tiling: Tiling,
        weights: dict[int, float],
        targets: dict[int, float],
        balanced: bool,
    ) -> None:
        self._tiling = tiling
        self._weights = weights
        self._targets = targets  # keys of a range, by the rows of the tile
        self._balanced = balanced
        self._items: list[tuple[float, Item]] = []
        self._rows: list[int] = []
        self._blocks: list[int] = []
        self._first_block = 0  # of the piece at hand
        self._range = 0
        self._counts = [0] * num_rows
        self._tails: dict[int, tuple[int, int, list[int]]] = {}

    def add(self, tile: _Tile) -> None:
        piece = tile.piece
        if tile.is_first:
            self._begin(tile)
        first_entry = len(self._rows)
        self._rows += tile.rows
        width = self._tiling.tile_rows(len(tile.rows))
        ordinal = self._counts[tile.rows[0]]
        for number, start in enumerate(range(0, tile.num_keys, self._range)):
            num_keys = min(self._range, tile.num_keys - start)
            item = Item(
                first_entry, len(tile.rows), self._first_block + start // BLOCK_SIZE, piece.first_key + start, num_keys,
                ordinal + number,
            )  # fmt: skip
            self._items.append((num_keys * self._weights[width], item))
        num_ranges = -(-tile.num_keys // self._range)
        for row in tile.rows:
            self._counts[row] += num_ranges
        if piece.rows[0] in self._tails and not piece.is_prefill and piece.num_sequences == 1:
            self._tails[piece.rows[0]][2].append(len(self._items) - 1)

    def _begin(self, tile: _Tile) -> None:
        """Lay out the blocks of the tile's piece, and choose its ranges; they are the same for all its tiles."""
        piece = tile.piece
        self._range = self._range_keys(tile)
        self._first_block = len(self._blocks)
        self._blocks += piece.blocks
        if piece.num_sequences == 1 and not piece.is_prefill:
            spare = self._tiling.slack
            if not self._balanced:  # the last range must not grow beyond its end
                spare = min(spare, -len(piece.blocks) % (self._range // BLOCK_SIZE))
            self._tails[piece.rows[0]] = (len(self._blocks), spare, [])
            self._blocks += [0] * spare

    def _range_keys(self, tile: _Tile) -> int:
        """Return the keys of a range, whole blocks."""
        if not self._tiling.split_keys:
            return tile.longest
        if not self._balanced:
            return tile.longest if tile.piece.is_prefill else INVARIANT_RANGE
        return range_keys(tile.longest, self._targets[self._tiling.tile_rows(len(tile.rows))])

    def finish(self) -> WorkList:
        """Add the rows that see nothing, number the parts, and put the most work first."""
        hidden = [row for row, count in enumerate(self._counts) if count == 0]
        step = self._tiling.wide // self._tiling.shape.fold
        for start in range(0, len(hidden), step):
            rows = hidden[start : start + step]
            self._items.append((0.0, Item(len(self._rows), len(rows), 0, 0, 0, 0)))
            self._rows += rows
        starts, num_parts = [0] * len(self._counts), 0
        for row, count in enumerate(self._counts):
            if count > 1:
                starts[row] = num_parts
                num_parts += count
        order = sorted(range(len(self._items)), key=lambda i: -self._items[i][0])
        place = {number: i for i, number in enumerate(order)}
        tails = {
            row: Tail(end, spare, tuple(place[number] for number in numbers))
            for row, (end, spare, numbers) in self._tails.items()
        }
        return WorkList(
            items=[self._items[number][1] for number in order],
            rows=self._rows,
            blocks=self._blocks,
            part_start=starts,
            part_count=[max(1, count) for count in self._counts],
            num_parts=num_parts,
            tails=tails,
        )
