"""One step's flat batch, over buffers that stay where they are.

What is recorded once over these buffers (a CUDA graph, a program of the CPU backend) can be replayed for every later
step: the tensors of a batch are always the first elements of the same buffers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from parrot_kernels import BLOCK_SIZE, AttentionPlan

NOT_STORED = -1
"""The slot of a padding row."""
BUCKET_STEP = 8
"""Tokens from bucket to bucket. Tiles of the matrix products have 8 rows and more, so that padding costs no time."""


class Span(NamedTuple):
    """Tokens of one sequence to compute, from position ``start`` on, with its blocks.

    The logits of the last ``num_rows`` of them are wanted: none amid a prompt, one where a token is sampled, more where
    guessed tokens are verified.
    """

    token_ids: Sequence[int]
    start: int
    num_rows: int
    block_table: Sequence[int]


@dataclasses.dataclass(frozen=True, slots=True)
class StepBatch:
    """The rows of a step, sequence after sequence: int64 tensors [num_tokens], and ``rows`` [num_rows].

    ``slots`` say where a row's key and value go (block * BLOCK_SIZE + offset, negative for a padding row), ``rows``
    are the flat rows whose logits are wanted, ``plan`` is the step's attention.
    """

    ids: Tensor
    positions: Tensor
    slots: Tensor
    rows: Tensor
    plan: AttentionPlan


class StepBuffers:
    """Buffers for up to ``max_num_tokens`` tokens a step, and the logits of up to ``max_num_rows`` (None: all) of them.

    With ``buckets`` (numbers of tokens) a batch of up to the largest is padded to the next, and its rows to as many, or
    as there are: what is captured for a bucket reads them all. Until a batch is filled in, all rows are padding.
    """

    def __init__(
        self,
        max_num_tokens: int,
        device: torch.device,
        *,
        max_num_rows: int | None = None,
        buckets: Iterable[int] = (),
    ) -> None:
        self.max_num_tokens = max_num_tokens
        self.max_num_rows = max_num_tokens if max_num_rows is None else min(max_num_rows, max_num_tokens)
        self.buckets = sorted(bucket for bucket in set(buckets) if bucket <= max_num_tokens)
        self._device = device
        # ids, positions, slots, rows. The host's copy is written through numpy, the cheapest way from a list.
        self._host = torch.zeros(4, max_num_tokens, dtype=torch.int64, pin_memory=device.type == "cuda")
        self._values = self._host.numpy()
        self._values[2] = NOT_STORED
        self._tensors = self._host if device.type == "cpu" else self._host.to(device)
        self._copied = torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return self._tensors.nbytes

    @property
    def full(self) -> StepBatch:
        """All of the buffers, as what a step is recorded over; the plan stands for those to come."""
        ids, positions, slots, rows = self._tensors
        rows = rows[: self.max_num_rows]
        return StepBatch(ids, positions, slots, rows, AttentionPlan([], [], [], num_rows=self.max_num_tokens))

    def fill(self, spans: Sequence[Span], sampled: Tensor | None = None) -> StepBatch:
        """Write ``spans`` to the buffers; the ids ``sampled`` [len(spans)], if given, in place of those of the spans.

        The batch before is then gone: on a CPU its step must be over; on a GPU it must have been launched, for there
        buffers are written in the order of the stream. The host waits only until the copy of that batch has been made.
        """
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        rows: list[int] = []
        query_lens: list[int] = []
        context_lens: list[int] = []
        for token_ids, start, num_rows, table in spans:
            ids += token_ids
            count = len(token_ids)
            end = start + count
            if count == 1:
                positions.append(start)
                slots.append(table[start // BLOCK_SIZE] * BLOCK_SIZE + start % BLOCK_SIZE)
            else:
                positions += range(start, end)
                slots += _slots(table, start, end)
            if num_rows == 1:
                rows.append(len(ids) - 1)
            else:
                rows += range(len(ids) - num_rows, len(ids))
            query_lens.append(count)
            context_lens.append(end)
        num_tokens = self._bucket(len(ids))
        num_padding = num_tokens - len(ids)
        if num_padding:
            ids += [0] * num_padding
            positions += [0] * num_padding
            slots += [NOT_STORED] * num_padding
        if num_tokens in self.buckets:
            rows += [0] * (min(num_tokens, self.max_num_rows) - len(rows))
        assert num_tokens <= self.max_num_tokens, f"{num_tokens} tokens in buffers of {self.max_num_tokens}"
        assert len(rows) <= self.max_num_rows, f"{len(rows)} rows of logits in buffers of {self.max_num_rows}"
        if self._copied is not None:
            self._copied.synchronize()
        values = self._values
        values[0, :num_tokens] = ids
        values[1, :num_tokens] = positions
        values[2, :num_tokens] = slots
        values[3, : len(rows)] = rows
        if self._copied is not None:
            self._tensors.copy_(self._host, non_blocking=True)
            self._copied.record(torch.cuda.current_stream(self._device))
        tensors = self._tensors
        if sampled is not None:
            tensors[0, : len(sampled)].copy_(sampled)
        return StepBatch(
            tensors[0, :num_tokens],
            tensors[1, :num_tokens],
            tensors[2, :num_tokens],
            tensors[3, : len(rows)],
            AttentionPlan(
                query_lens, context_lens, [span.block_table for span in spans], num_rows=num_tokens, device=self._device
            ),
        )

    def _bucket(self, num_tokens: int) -> int:
        return next((bucket for bucket in self.buckets if bucket >= num_tokens), num_tokens)


def buckets_up_to(most: int) -> list[int]:
    """Return the buckets for steps of up to ``most`` tokens: small batches are padded little, others by up to seven."""
    few = [bucket for bucket in (1, 2, 4) if bucket < most]
    return [*few, *range(8, most, BUCKET_STEP), most]


def _slots(table: Sequence[int], start: int, end: int) -> list[int]:
    """Return the slots of positions ``start`` to ``end``."""
    slots: list[int] = []
    first = start // BLOCK_SIZE
    for block in table[first : -(-end // BLOCK_SIZE)]:
        slots += range(block * BLOCK_SIZE, (block + 1) * BLOCK_SIZE)
    return slots[start - first * BLOCK_SIZE : end - first * BLOCK_SIZE]
