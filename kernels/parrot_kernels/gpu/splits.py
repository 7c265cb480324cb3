"""How finely long pieces are cut: so that all multiprocessors end together, and no finer.

Each range more is an item to begin and a part of each of its rows to write, read and merge. The time of a list is
estimated by a bound that holds for any order: if k items take at least c each, one of n multiprocessors gets
ceil(k / n) of them. So a list just short of another round is preferred to one that has just begun it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from parrot_kernels.gpu.sharing_cost import AttentionShape, SharingCost

MIN_RANGE = 128
"""Keys: a shorter range does not repay its item."""
RANGE_UNIT = 64
"""Keys of which ranges are multiples, as the kernel takes so many at a time."""
FINENESS = (0.5, 0.67, 0.8, 0.9, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0)
"""Ranges for each multiprocessor that are tried, were all of the same length."""


class TileSize(NamedTuple):
    """A tile of ``rows`` (padding included) of which ``packed`` are used, over ``num_keys`` of the ``longest`` of its
    piece."""

    longest: int
    num_keys: int
    rows: int
    packed: int


def range_keys(longest: int, target: float) -> int:
    """Return the keys of the even ranges, of about ``target`` keys at most, that ``longest`` keys are cut into."""
    num_ranges = math.ceil(longest / max(MIN_RANGE, target))
    return longest if num_ranges <= 1 else math.ceil(longest / num_ranges / RANGE_UNIT) * RANGE_UNIT


def best_target(
    tiles: Mapping[TileSize, int], shape: AttentionShape, cost: SharingCost, processors: int
) -> dict[int, float]:
    """Return the keys of a range to aim at, by the rows of the tile. ``tiles`` counts those of each size."""
    weights = {rows: cost.key_weight(rows, shape) for rows in {tile.rows for tile in tiles}}
    work = shape.kv_heads * sum(tile.num_keys * weights[tile.rows] * count for tile, count in tiles.items())
    best, best_time = math.inf, math.inf
    for target in (math.inf, *(work / processors / fineness for fineness in FINENESS)):
        time = _time(tiles, target, weights, shape, cost, processors)
        if time < best_time:
            best, best_time = target, time
    return {rows: best / weight for rows, weight in weights.items()}


def _time(
    tiles: Mapping[TileSize, int],
    target: float,
    weights: Mapping[int, float],
    shape: AttentionShape,
    cost: SharingCost,
    processors: int,
) -> float:
    """Return the estimated time of all tiles cut so, in keys that a multiprocessor reads."""
    key_s = shape.bytes_per_key / shape.kv_heads / cost.bytes_per_s
    total, lengths = 0.0, []
    for tile, count in tiles.items():
        length = range_keys(tile.longest, target / weights[tile.rows])
        num_ranges = -(-tile.num_keys // length)
        overhead = cost.item_s / key_s
        if num_ranges > 1:
            overhead += tile.packed * cost.part_s / key_s
        num_items = num_ranges * count * shape.kv_heads
        total += count * shape.kv_heads * tile.num_keys * weights[tile.rows] + num_items * overhead
        lengths.append((min(length, tile.num_keys) * weights[tile.rows] + overhead, num_items))
    time, so_many = total / processors, 0
    for keys, num_items in sorted(lengths, reverse=True):
        so_many += num_items
        time = max(time, -(-so_many // processors) * keys)
    return time
