"""A work list in device memory, in buffers that stay where they are so that a CUDA graph can be captured over them.

A step of decoding moves each sequence by a token: only the rows' positions change, and the kernel finds in them how
many keys there are. Where a sequence got a block more, that is added at the end of its keys. Only when sequences come
or go is the plan cut again.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import sys
from collections.abc import Sequence

import torch

from parrot_kernels.attention_plan import BLOCK_SIZE, AttentionPlan
from parrot_kernels.errors import KernelInputError
from parrot_kernels.gpu.attention_launch import AttentionLaunch, wide_rows
from parrot_kernels.gpu.device import num_sms
from parrot_kernels.gpu.plan_change import BlocksRead, Change
from parrot_kernels.gpu.sharing_cost import AttentionShape, SharingCost
from parrot_kernels.gpu.stand_in_plan import StandInPlan
from parrot_kernels.gpu.work_list import Item, Tiling, WorkList
from parrot_kernels.gpu.workspace import Workspace

ALIGNMENT = 32
"""Numbers: 128 bytes, a line of the caches."""
READ_AHEAD = 32
"""Numbers behind the last block that the kernel may read, without looking at them: two steps of up to 256 keys."""
SLACK_BLOCKS = 16
"""Blocks a sequence should be able to grow by before its plan is cut, and so balanced, again: for ``Tiling.slack``."""
INVARIANT_ROWS = 64
"""Of wide tiles where a row must not depend on its neighbours, for products of other sizes sum in another order."""


@dataclasses.dataclass(frozen=True, slots=True)
class Capacity:
    """The most a plan may hold: rows of the batch, and of its work list items, entries of rows, blocks, and parts."""

    rows: int
    items: int
    entries: int
    blocks: int
    parts: int

    @classmethod
    def of(cls, work: WorkList) -> Capacity:
        """Return what ``work`` needs."""
        return cls(len(work.part_count), len(work.items), len(work.rows), len(work.blocks), work.num_parts)

    @classmethod
    def for_batches(cls, tiling: Tiling, rows: int, blocks: int, *, parts_per_row: int = 16) -> Capacity:
        """Return room for any batch of ``rows`` whose block tables hold ``blocks`` in all.

        Without shared prefixes and splits each row is in one tile, so all such batches fit. What sharing or splitting
        would need more than is set aside is done without.
        """
        splits = 4 * tiling.processors
        return cls(rows, 2 * rows + splits, 4 * rows, blocks + tiling.slack * rows, parts_per_row * rows)

    def holds(self, need: Capacity) -> bool:
        """Return whether ``need`` fits."""
        return all(
            room >= wanted for room, wanted in zip(dataclasses.astuple(self), dataclasses.astuple(need), strict=True)
        )


class DevicePlan:
    """The plan of a step where the kernel reads it, with the workspace of the kernel.

    One step at a time: the tensors are read by the launches of a step, in the order of a stream, and ``update`` writes
    them on the same stream. Not for several threads at once.
    """

    def __init__(
        self,
        tiling: Tiling,
        capacity: Capacity,
        device: torch.device,
        *,
        cost: SharingCost | None = None,
        launch: AttentionLaunch | None = None,
        workspace: Workspace | None = None,
    ) -> None:
        shape = tiling.shape
        self.tiling = tiling
        self.capacity = capacity
        self.cost = cost or SharingCost()
        self.launch = launch or AttentionLaunch.for_device(device, shape, tiling.wide)
        # Positions, which change with every step, come first; blocks, of which few are in use, last.
        sizes = {
            "num_items": 1,
            "positions": capacity.rows,
            "part_start": capacity.rows,
            "part_count": capacity.rows,
            "items": capacity.items * len(Item._fields),
            "rows": capacity.entries,
            "blocks": capacity.blocks + READ_AHEAD,
        }
        *starts, total = itertools.accumulate(map(_aligned, sizes.values()), initial=0)
        self._starts = dict(zip(sizes, starts, strict=True))
        self._host = torch.zeros(total, dtype=torch.int32, pin_memory=device.type == "cuda")
        self._values = self._host.numpy()
        self._numbers = self._host if device.type == "cpu" else torch.zeros_like(self._host, device=device)
        self.num_items, self.positions, self.part_start, self.part_count, self.items, self.rows, self.blocks = (
            self._numbers[start:] for start in starts
        )
        self.workspace = workspace or Workspace.of(shape, rows=capacity.rows, parts=capacity.parts, device=device)
        self._device = device
        self._copied = torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._read: BlocksRead | None = None
        self._num_blocks = 0  # as many blocks the caches must have at least
        self._cache_blocks = sys.maxsize  # of the smallest cache that was read by it

    @classmethod
    def of(
        cls, plan: AttentionPlan, shape: AttentionShape, device: torch.device, cost: SharingCost | None = None
    ) -> DevicePlan:
        """Return what was made of (or bound to) ``plan`` before, or make one that holds just it."""
        plans = _plans(plan)
        if shape not in plans:
            plans[shape] = (
                plan.device_plan(shape) if isinstance(plan, StandInPlan) else cls._just(plan, shape, device, cost)
            )
        return plans[shape]

    @classmethod
    def _just(
        cls, plan: AttentionPlan, shape: AttentionShape, device: torch.device, cost: SharingCost | None
    ) -> DevicePlan:
        cost = cost or SharingCost()
        tiling = Tiling(shape, wide_rows_for(plan, shape, cost), num_sms(device))
        work = WorkList.of(plan, tiling, cost)
        made = cls(tiling, Capacity.of(work), device, cost=cost)
        made.load(plan, work)
        return made

    def bind(self, plan: AttentionPlan) -> None:
        """Let launches for ``plan``, of this shape, read this plan, whatever it will hold."""
        _plans(plan)[self.tiling.shape] = self

    @property
    def num_programs(self) -> int:
        """Of a launch."""
        return self.tiling.processors * self.launch.programs_per_processor

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return self._numbers.nbytes + self.workspace.nbytes

    def update(self, plan: AttentionPlan) -> Change:
        """Make this the plan of the next step; return what that took. Waits for no work but copies of an update before.

        Raises ``KernelInputError`` if the batch is too large, or for other caches than those that are read.
        """
        change = self.advance(plan)
        if change is None:
            self.cut(plan)
        return change or Change.CUT

    def advance(self, plan: AttentionPlan) -> Change | None:
        """Do so if it can be done without cutting ``plan``; None if not."""
        grown = self._read.growth(plan) if self._read is not None else None
        if self._read is None or grown is None or not self._grow(grown):
            return None
        self._read.advance(plan, grown)
        self._write("positions", plan.positions)
        if grown:
            self._copy(self._used)
            return Change.GROWN
        self._copy(self._starts["part_start"])  # what comes before it
        return Change.POSITIONS

    def cut(self, plan: AttentionPlan) -> None:
        """Do so, whatever the step before was."""
        self.load(plan, self._work(plan))

    def check_cache(self, num_blocks: int) -> None:
        """Note that a cache of ``num_blocks`` is read by this plan, and will be by later ones.

        Raises ``KernelInputError`` if it lacks blocks.
        """
        self._cache_blocks = min(self._cache_blocks, num_blocks)
        self._check_blocks(self._num_blocks)

    def _check_blocks(self, num_blocks: int) -> None:
        if num_blocks > self._cache_blocks:
            raise KernelInputError(f"a plan for {num_blocks} blocks, with {self._cache_blocks}")
        self._num_blocks = num_blocks

    def _work(self, plan: AttentionPlan) -> WorkList:
        """Cut ``plan`` such that it fits, without sharing or splits if need be."""
        unsplit = dataclasses.replace(self.tiling, split_keys=False)
        attempts = [(self.tiling, self.cost)]
        if plan.share:  # else the ranges are fixed by what was promised
            alone = dataclasses.replace(self.cost, share=False)
            attempts += [(self.tiling, alone), (unsplit, alone)]
        for tiling, cost in attempts:
            work = WorkList.of(plan, tiling, cost)
            if self.capacity.holds(Capacity.of(work)):
                return work
        raise KernelInputError(f"a plan that needs {Capacity.of(work)}, of at most {self.capacity}")

    def load(self, plan: AttentionPlan, work: WorkList) -> None:
        """Make ``work``, which was cut from ``plan`` and fits, that of the next step."""
        self._check_blocks(plan.num_blocks)
        self._wait()
        self._tails = dict(work.tails)
        self._read = BlocksRead(plan)
        self._write("num_items", [len(work.items)])
        self._write("positions", plan.positions)
        self._write("part_start", work.part_start)
        self._write("part_count", work.part_count)
        self._write("items", list(itertools.chain.from_iterable(work.items)))
        self._write("rows", work.rows)
        self._write("blocks", work.blocks)
        self._used = self._starts["blocks"] + len(work.blocks)
        self._copy(self._used)

    def _grow(self, grown: dict[int, Sequence[int]]) -> bool:
        """Add blocks at the ends of sequences, given by their first rows; return whether there was room for all."""
        if any(row not in self._tails or len(blocks) > self._tails[row].spare for row, blocks in grown.items()):
            return False
        if grown:
            blocks = list(itertools.chain.from_iterable(grown.values()))
            if min(blocks) < 0:
                raise KernelInputError("a negative block in a block table")
            self._check_blocks(max(self._num_blocks, max(blocks) + 1))
        self._wait()
        for row, added in grown.items():
            tail = self._tails[row]
            start = self._starts["blocks"] + tail.end
            self._values[start : start + len(added)] = added
            for item in tail.items:
                field = self._starts["items"] + item * len(Item._fields) + Item._fields.index("num_keys")
                self._values[field] += len(added) * BLOCK_SIZE
            self._tails[row] = tail._replace(end=tail.end + len(added), spare=tail.spare - len(added))
        return True

    def _wait(self) -> None:
        """Wait until the host's copy may be written: the device has read it."""
        if self._copied is not None:
            self._copied.synchronize()

    def _write(self, section: str, numbers: Sequence[int]) -> None:
        start = self._starts[section]
        self._values[start : start + len(numbers)] = numbers

    def _copy(self, count: int) -> None:
        if self._copied is not None:
            self._numbers[:count].copy_(self._host[:count], non_blocking=True)
            self._copied.record(torch.cuda.current_stream(self._device))


def _plans(plan: AttentionPlan) -> dict[AttentionShape, DevicePlan]:
    """Return the device plans of ``plan``, kept with it."""
    if not isinstance(plan.native, dict):
        plan.native = {}
    return plan.native


def wide_rows_for(plan: AttentionPlan, shape: AttentionShape, cost: SharingCost) -> int:
    """Return the rows of wide tiles that the largest piece asks for; always the same if the plan does not share."""
    if not plan.share:
        return wide_rows(shape, INVARIANT_ROWS)
    pays = functools.partial(cost.pays, shape, wide_rows(shape, plan.num_tokens * shape.fold))
    return wide_rows(shape, max((len(piece.rows) * shape.fold for piece in plan.cut(pays)), default=0))


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
