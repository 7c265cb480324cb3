"""Measures the rates of ``SharingCost`` on a device, each by a batch in which it is what takes the time."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from parrot_kernels.attention_plan import BLOCK_SIZE, AttentionPlan
from parrot_kernels.gpu.attention_launch import wide_rows
from parrot_kernels.gpu.device import num_sms
from parrot_kernels.gpu.device_plan import Capacity, DevicePlan
from parrot_kernels.gpu.paged_attention import paged_attention
from parrot_kernels.gpu.sharing_cost import AttentionShape, SharingCost
from parrot_kernels.gpu.work_list import Tiling, WorkList

Measure = Callable[[Callable[[], object]], float]
"""Returns the seconds that a call takes on the device."""
ALONE = SharingCost(share=False)
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
    return fitted(shape, measured(shape, device, sizes or Sizes(), measure or device_seconds))


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
    bench = _Bench(shape, device, sizes, measure)
    per_sequence = sizes.keys // BLOCK_SIZE
    own = [range(i * per_sequence, (i + 1) * per_sequence) for i in range(sizes.sequences)]
    same = [range(per_sequence)] * sizes.sequences
    short = [[i] for i in range(min(sizes.short_sequences, sizes.sequences * per_sequence))]
    wide_tile = wide_rows(shape, sizes.rows * shape.fold)
    empty_s, _ = bench.run([])
    own_s, _ = bench.run(own, split_keys=False)
    same_s, _ = bench.run(same, split_keys=False)
    wide_s, wide = bench.run([range(per_sequence)] * sizes.rows, SharingCost(), wide=wide_tile)
    # As if there were multiprocessors without end and parts for nothing: the shortest ranges.
    split_s, split = bench.run(own, SharingCost(part_s=0.0, item_s=0.0, share=False), processors=1 << 20)
    short_s, few = bench.run(short)
    tiles = {item.first_entry for item in wide.items}
    return Timings(
        empty_s=empty_s,
        own_s=own_s,
        own_keys=sizes.sequences * sizes.keys,
        same_s=same_s,
        same_keys=sizes.keys,
        same_readers=sizes.sequences,
        wide_s=wide_s,
        wide_flops=shape.flops(len(tiles) * wide_tile, sizes.keys),
        split_s=split_s,
        split_parts=split.num_parts,
        short_s=short_s,
        short_keys=len(short) * BLOCK_SIZE,
        short_items=len(few.items),
    )


class _Bench:
    """A layer's cache, and batches of decoding sequences over its blocks."""

    def __init__(self, shape: AttentionShape, device: torch.device, sizes: Sizes, measure: Measure) -> None:
        self._shape, self._device, self._measure = shape, device, measure
        blocks = sizes.sequences * sizes.keys // BLOCK_SIZE
        # Not zeros: the power that products draw, and so the clock, depends on the numbers.
        self._caches = [
            torch.randn(blocks, shape.kv_heads, BLOCK_SIZE, shape.head_dim, device=device).to(torch.bfloat16)
            for _ in range(2)
        ]

    def run(
        self,
        tables: Sequence[Sequence[int]],
        cost: SharingCost = ALONE,
        *,
        wide: int | None = None,
        processors: int | None = None,
        split_keys: bool = True,
    ) -> tuple[float, WorkList]:
        """Return the time of a batch with these block tables, all full, and its work list."""
        shape = self._shape
        contexts = [len(table) * BLOCK_SIZE for table in tables]
        plan = AttentionPlan([1] * len(tables), contexts, tables, num_rows=max(1, len(tables)))
        actual = num_sms(self._device)
        tiling = Tiling(shape, wide or shape.narrow, processors or actual, split_keys=split_keys)
        work = WorkList.of(plan, tiling, cost)
        made = DevicePlan(dataclasses.replace(tiling, processors=actual), Capacity.of(work), self._device, cost=cost)
        made.load(plan, work)
        made.bind(plan)
        query: Tensor = torch.randn(plan.num_tokens, shape.heads, shape.head_dim, device=self._device)
        query = query.to(torch.bfloat16)
        keys, values = self._caches
        return self._measure(lambda: paged_attention(query, keys, values, plan, scale=shape.head_dim**-0.5)), work


def device_seconds(call: Callable[[], object], *, warm_up: int = 3, repeats: int = 15) -> float:
    """Return the median time between two events around ``call`` on the current CUDA stream.

    Calls are queued behind one another, so that the time of a launch on the host is hidden.
    """
    for _ in range(warm_up):
        call()
    torch.cuda.synchronize()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    # What the device does while the calls are queued.
    torch.cuda._sleep(20_000_000)
    for start, end in events:
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in events) / 1000
