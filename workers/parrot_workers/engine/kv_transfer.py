"""Copies of KV blocks between the paged cache and host memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from parrot_kernels.fp8 import movable
from parrot_workers.engine.host_copy import to_device
from parrot_workers.engine.host_tier import Transfers
from parrot_workers.engine.paged_cache import PagedCache

STAGED_BYTES = 16 * 2**20
"""Of the device's memory, where the blocks of a portion are put together."""


class KVTransfer:
    """``num_slots`` blocks of host memory, and the copies between them and ``cache``.

    A slot holds a block of all layers in one row, each layer's keys, then its values, so that a block crosses a GPU's
    bus in one large copy. On a GPU the memory is pinned and everything is queued on the current stream: ``run``
    returns at once, and a step that is queued after it finds the blocks as they should be. One thread owns it.
    """

    def __init__(self, cache: PagedCache, num_slots: int) -> None:
        parts = [tensor for layer in cache.keys for tensor in (cache.keys[layer], cache.values[layer])]
        self._parts = [movable(tensor) for tensor in parts]
        """Per layer keys, then values: [num_blocks, num_kv_heads, block_size, head_dim]."""
        self._sizes = [tensor[0].numel() for tensor in self._parts]
        row, some = sum(self._sizes), self._parts[0]
        self._device = some.device
        self._host = torch.empty(num_slots, row, dtype=some.dtype, pin_memory=some.is_cuda)
        """[num_slots, row]. Never read before it is written, so what it holds at first is no matter."""
        self._staged = some.new_empty(max(1, min(num_slots, STAGED_BYTES // (row * some.itemsize))), row)
        """[portion, row], on the device."""

    @property
    def host_bytes(self) -> int:
        """Bytes of host memory."""
        return self._host.nbytes

    @property
    def staged_bytes(self) -> int:
        """Bytes of the device's memory beside the cache."""
        return self._staged.nbytes

    @torch.inference_mode()
    def run(self, transfers: Transfers) -> None:
        """Make the copies: all stores, then all loads."""
        for blocks, slots in self._portions(transfers.stores):
            self._store(blocks, slots)
        for slots, blocks in self._portions(transfers.loads):
            self._load(slots, blocks)

    def wait(self) -> None:
        """Wait until all copies are made."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _store(self, blocks: list[int], slots: list[int]) -> None:
        index = to_device(blocks, torch.int64, self._device)
        for part, column in zip(self._parts, self._columns(len(blocks)), strict=True):
            column.copy_(part.index_select(0, index).flatten(1))
        for row, slot in zip(self._staged, slots, strict=False):
            self._host[slot].copy_(row, non_blocking=True)

    def _load(self, slots: list[int], blocks: list[int]) -> None:
        for row, slot in zip(self._staged, slots, strict=False):
            row.copy_(self._host[slot], non_blocking=True)
        index = to_device(blocks, torch.int64, self._device)
        for part, column in zip(self._parts, self._columns(len(blocks)), strict=True):
            part.index_copy_(0, index, column.reshape(-1, *part.shape[1:]))

    def _columns(self, count: int) -> tuple[Tensor, ...]:
        """What each part has in the first ``count`` staged rows: [count, elements of a block] each."""
        return torch.split(self._staged[:count], self._sizes, dim=1)

    def _portions(self, pairs: tuple[tuple[int, int], ...]) -> Iterator[tuple[list[int], list[int]]]:
        """Yield sources and targets, as many at a time as can be staged."""
        size = self._staged.shape[0]
        for start in range(0, len(pairs), size):
            portion = pairs[start : start + size]
            yield [source for source, _ in portion], [target for _, target in portion]
