"""Measures the rates of ``SharingCost`` on a device, each by a batch in which it is what takes the time."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable

import torch

from parrot_kernels.attention_plan import BLOCK_SIZE
from parrot_kernels.gpu.attention_bench import AttentionBench, tree_tables
from parrot_kernels.gpu.attention_launch import wide_rows
from parrot_kernels.gpu.sharing_cost import AttentionShape, SharingCost
from parrot_kernels.gpu.tuning import graph_replay_ms

logger = logging.getLogger(__name__)

Measure = Callable[[Callable[[], object]], float]
"""Returns the seconds that a call takes on the device."""
FASTEST_SHARE = 0.02
"""Of a measured time: what is left of it after what is known of it, at least, however the clock jitters."""


@dataclasses.dataclass(frozen=True, slots=True)
class Sizes:
    """Of the batches: large enough that caches do not hold them (64 * 2048 keys of 8 heads of 128 are 512 MiB)."""

    sequences: int = 64
    keys: int = 2048
    rows: int = 512
    short_sequences: int = 1024


@dataclasses.dataclass(frozen=True, slots=True)
class Timings:
    """What the batches took, in seconds, and what was in them.

    ``empty_s``: no key. ``own_s``: ``own_keys`` in all, each read once. ``same_s``: ``same_keys``, read by each of
    ``same_readers``. ``wide_s``: ``wide_flops``. ``split_s``: the work of ``own_s`` in ``split_parts`` parts.
    ``short_s``: ``short_keys`` in ``short_items``.
    """

    empty_s: float
    own_s: float
    own_keys: int
    same_s: float
    same_keys: int
    same_readers: int
    wide_s: float
    wide_flops: int
    split_s: float
    split_parts: int
    short_s: float
    short_keys: int
    short_items: int


def calibrate(
    shape: AttentionShape, device: torch.device, *, sizes: Sizes | None = None, measure: Measure | None = None
) -> SharingCost:
    """Measure the rates for layers of ``shape``, bfloat16, on an idle ``device``: less than a second when compiled.

    Allocates caches of ``sizes.sequences * sizes.keys`` tokens of a layer for that time.
    """
    return fitted(shape, measured(shape, device, sizes or Sizes(), measure or replay_s))


@functools.cache
def calibrated_cost(shape: AttentionShape, device: torch.device) -> SharingCost:
    """Return what ``calibrate`` measures, once a process; the defaults where its caches do not fit ``device``."""
    try:
        # The rates are those of bytes, whatever a cache's elements are.
        return calibrate(dataclasses.replace(shape, key_bytes=2), device)
    except torch.OutOfMemoryError as error:
        logger.warning("what sharing prefixes costs is not measured, but guessed, for want of memory: %s", error)
        return SharingCost()


def fitted(shape: AttentionShape, timings: Timings) -> SharingCost:
    """Return the rates that explain ``timings``."""
    t = timings

    def left(total: float, *known: float) -> float:
        return max(total - sum(known), FASTEST_SHARE * total)

    bytes_per_s = t.own_keys * shape.bytes_per_key / left(t.own_s, t.empty_s)
    read_s = t.same_keys * shape.bytes_per_key / bytes_per_s
    reread = t.same_keys * (t.same_readers - 1) * shape.bytes_per_key / left(t.same_s, t.empty_s, read_s)
    return SharingCost(
        bytes_per_s=bytes_per_s,
        reread_bytes_per_s=max(bytes_per_s, reread),
        flops_per_s=t.wide_flops / left(t.wide_s, t.empty_s),
        part_s=left(t.split_s, t.own_s) / (t.split_parts * shape.heads),
        item_s=left(t.short_s, t.empty_s, t.short_keys * shape.bytes_per_key / bytes_per_s)
        / (t.short_items * shape.kv_heads),
        launch_s=t.empty_s,
    )


def measured(shape: AttentionShape, device: torch.device, sizes: Sizes, measure: Measure) -> Timings:
    """Run the batches."""
    bench = AttentionBench(shape, sizes.sequences * sizes.keys // BLOCK_SIZE, device)
    own, short = tree_tables([sizes.sequences], [sizes.keys]), tree_tables([sizes.short_sequences], [BLOCK_SIZE])
    same = tree_tables([1, sizes.sequences], [sizes.keys, 0])
    wide = wide_rows(shape, sizes.rows * shape.fold)
    # As if there were multiprocessors without end and parts for nothing: the shortest ranges.
    parts = SharingCost(part_s=0.0, item_s=0.0, share=False)
    empty = bench.batch([])
    once = bench.batch(own, split_keys=False)
    again = bench.batch(same, split_keys=False)
    together = bench.batch(tree_tables([1, sizes.rows], [sizes.keys, 0]), SharingCost(share=True), wide=wide)
    split = bench.batch(own, parts, processors=1 << 20)
    few = bench.batch(short)
    empty_s, own_s, same_s, wide_s, split_s, short_s = (
        measure(batch.run) for batch in (empty, once, again, together, split, few)
    )
    num_tiles = len({item.first_entry for item in together.work.items})
    return Timings(
        empty_s=empty_s,
        own_s=own_s,
        own_keys=len(own) * sizes.keys,
        same_s=same_s,
        same_keys=sizes.keys,
        same_readers=sizes.sequences,
        wide_s=wide_s,
        wide_flops=shape.flops(num_tiles * wide, sizes.keys),
        split_s=split_s,
        split_parts=split.work.num_parts,
        short_s=short_s,
        short_keys=len(few.work.items) * BLOCK_SIZE,
        short_items=len(few.work.items),
    )


def replay_s(call: Callable[[], object]) -> float:
    """Return the median time of ``call`` in a CUDA graph, without the host's part."""
    return graph_replay_ms(call) / 1000
