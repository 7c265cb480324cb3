"""FlashInfer in four ways, where it is installed; it compiles its kernels with nvcc at their first use.

Its pages are ours: 16 keys, heads outside ("HND"). Plans get the numbers that they read on the host there, and the page
numbers on the device, as its documentation recommends.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import itertools
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.attention_case import AttentionCase
from parrot_kernels.attention_plan import BLOCK_SIZE

LAYOUT = "HND"
WORKSPACE_BYTES = 512 << 20
TENSOR_CORE_FOLD = 4
"""Query heads of a KV head from which FlashInfer's decode is faster on tensor cores."""


class Levels:
    """The levels of a case as FlashInfer takes them: which rows read which pages."""

    def __init__(self, case: AttentionCase) -> None:
        tree, device = case.tree, case.device
        self.rows, self.pages, self.page_numbers, self.last_pages = [], [], [], []
        """Of each level: starts of the nodes' rows and pages (on the host), the pages, the keys of the last of each."""
        first = 0
        for width, length in zip(tree.widths, tree.lengths, strict=True):
            count = length // BLOCK_SIZE
            self.rows.append(_starts(width, tree.num_requests // width))
            self.pages.append(_starts(width, count))
            numbers = torch.arange(first, first + width * count, dtype=torch.int32)
            self.page_numbers.append(numbers.to(device))
            self.last_pages.append(torch.full([width], BLOCK_SIZE, dtype=torch.int32))
            first += width * count


def _starts(count: int, each: int) -> Tensor:
    return torch.arange(count + 1, dtype=torch.int32) * each


class FlashInferAttention:
    """See ``Prepared``: each step is planned anew, for the lengths have changed."""

    def __init__(self, case: AttentionCase) -> None:
        self.case = case
        self.flashinfer: Any = importlib.import_module("flashinfer")
        self.workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=case.device)
        shape = case.shape
        self.sizes = (shape.heads, shape.kv_heads, shape.head_dim, BLOCK_SIZE)
        self.dtypes = {"q_data_type": torch.bfloat16, "kv_data_type": torch.bfloat16}
        self.build()
        self.plan()

    def build(self) -> None:
        """Make the wrappers."""
        raise NotImplementedError

    def plan(self) -> None:
        raise NotImplementedError

    def advance(self) -> None:
        self.plan()

    def cache(self, layer: int) -> tuple[Tensor, Tensor]:
        return self.case.keys[layer], self.case.values[layer]


class Cascade(FlashInferAttention):
    """The cascade wrapper as it is shipped."""

    def build(self) -> None:
        self._wrapper = self.flashinfer.MultiLevelCascadeAttentionWrapper(
            len(self.case.tree.widths), self.workspace, LAYOUT
        )

    def plan(self) -> None:
        levels = Levels(self.case)
        self._wrapper.plan(
            levels.rows, levels.pages, levels.page_numbers, levels.last_pages, *self.sizes, **self.dtypes
        )

    def run(self, layer: int) -> Tensor:
        out: Tensor = self._wrapper.run(self.case.query, self.cache(layer))
        return out


class Parts(FlashInferAttention):
    """Prefill's kernel (fa2) for every level that is shared, decode's for the requests' own keys, then merges."""

    def build(self) -> None:
        *shared, _ = self.case.tree.widths
        self._shared = [
            self.flashinfer.BatchPrefillWithPagedKVCacheWrapper(self.workspace, LAYOUT, backend="fa2") for _ in shared
        ]
        self._own = self.flashinfer.BatchDecodeWithPagedKVCacheWrapper(
            self.workspace, LAYOUT, use_tensor_cores=self.case.shape.fold >= TENSOR_CORE_FOLD
        )

    def plan(self) -> None:
        levels = Levels(self.case)
        each = list(zip(levels.rows, levels.pages, levels.page_numbers, levels.last_pages, strict=True))
        for wrapper, level in zip(self._shared, each, strict=False):
            wrapper.plan(*level, *self.sizes, causal=False, **self.dtypes)
        self._own.plan(*each[-1][1:], *self.sizes, **self.dtypes)

    def run(self, layer: int) -> Tensor:
        cache, query = self.cache(layer), self.case.query
        out, lse = self._own.run(query, cache, return_lse=True)
        for wrapper in self._shared:
            self.flashinfer.merge_state_in_place(out, lse, *wrapper.run(query, cache, return_lse=True))
        return out


class OneBatch(FlashInferAttention):
    """One plan of its persistent kernel, in which every request has a row for each level; then merges."""

    def build(self) -> None:
        self._wrapper = self.flashinfer.BatchAttention(kv_layout=LAYOUT, device=str(self.case.device))

    def plan(self) -> None:
        levels, shape = Levels(self.case), self.case.shape
        lengths = itertools.chain.from_iterable(
            [length] * width for width, length in zip(self.case.tree.widths, self.case.tree.lengths, strict=True)
        )
        self._wrapper.plan(
            _joined(levels.rows),
            _joined(levels.pages),
            torch.cat(levels.page_numbers),
            torch.tensor(list(lengths), dtype=torch.int32),
            shape.heads,
            shape.kv_heads,
            shape.head_dim,
            shape.head_dim,
            BLOCK_SIZE,
            causal=False,
            **self.dtypes,
        )

    def run(self, layer: int) -> Tensor:
        count = len(self.case.tree.widths)
        outs, lses = self._wrapper.run(self.case.query.repeat(count, 1, 1), self.cache(layer))
        (out, *more), (lse, *more_lse) = outs.chunk(count), lses.chunk(count)
        for other, other_lse in zip(more, more_lse, strict=True):
            self.flashinfer.merge_state_in_place(out, lse, other, other_lse)
        return out


def _joined(starts: Sequence[Tensor]) -> Tensor:
    """Return the starts of several levels as those of one list."""
    joined, offset = [starts[0][:1]], 0
    for level in starts:
        joined.append(level[1:] + offset)
        offset += int(level[-1])
    return torch.cat(joined)


class Decode(FlashInferAttention):
    """Its plain paged decode: nothing is shared."""

    def build(self) -> None:
        self._wrapper = self.flashinfer.BatchDecodeWithPagedKVCacheWrapper(
            self.workspace, LAYOUT, use_tensor_cores=self.case.shape.fold >= TENSOR_CORE_FOLD
        )
        self._numbers = torch.tensor(self.case.tables, dtype=torch.int32).flatten().to(self.case.device)

    def plan(self) -> None:
        tree = self.case.tree
        pages = _starts(tree.num_requests, tree.context // BLOCK_SIZE)
        last_pages = torch.full([tree.num_requests], BLOCK_SIZE, dtype=torch.int32)
        self._wrapper.plan(pages, self._numbers, last_pages, *self.sizes, **self.dtypes)

    def run(self, layer: int) -> Tensor:
        out: Tensor = self._wrapper.run(self.case.query, self.cache(layer))
        return out


@dataclasses.dataclass(frozen=True, slots=True)
class FlashInfer:
    """One of the ways; ``prepare`` compiles it, which takes up to a minute each the first time on a machine."""

    name: str
    way: Callable[[AttentionCase], FlashInferAttention]

    def missing(self, device: torch.device) -> str | None:
        if device.type != "cuda":
            return "it runs on CUDA devices alone"
        if importlib.util.find_spec("flashinfer") is None:
            return "the package flashinfer is not installed"
        if shutil.which("nvcc") is None and importlib.util.find_spec("flashinfer_jit_cache") is None:
            return "flashinfer needs nvcc on PATH to compile its kernels, or the package flashinfer_jit_cache"
        return None

    def prepare(self, case: AttentionCase) -> FlashInferAttention:
        return self.way(case)


CASCADE = FlashInfer("flashinfer_cascade", Cascade)
PARTS = FlashInfer("flashinfer_parts", Parts)
BATCH = FlashInfer("flashinfer_batch", OneBatch)
DECODE = FlashInfer("flashinfer_decode", Decode)
