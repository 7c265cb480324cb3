"""The flat batch of a step: what goes where, over buffers that never move."""

from __future__ import annotations

import pytest
import torch

from parrot_workers.engine.step_batch import Span, StepBuffers

CPU = torch.device("cpu")
SPANS = [
    Span([11], 16, 1, [4, 7]),  # decodes
    Span([21, 22, 23], 15, 0, [3, 9]),  # amid a prompt, over a block's border
    Span([31, 32, 33, 34], 0, 3, [5]),  # verifies two guesses
]


def test_rows_of_spans() -> None:
    batch = StepBuffers(32, CPU).fill(SPANS)
    assert batch.ids.tolist() == [11, 21, 22, 23, 31, 32, 33, 34]
    assert batch.positions.tolist() == [16, 15, 16, 17, 0, 1, 2, 3]
    assert batch.slots.tolist() == [7 * 16, 3 * 16 + 15, 9 * 16, 9 * 16 + 1, 80, 81, 82, 83]
    assert batch.rows.tolist() == [0, 5, 6, 7]
    assert (list(batch.plan.query_lens), list(batch.plan.context_lens)) == ([1, 3, 4], [17, 18, 4])
    assert batch.plan.num_tokens == 8
    assert batch.ids.dtype == batch.positions.dtype == batch.slots.dtype == batch.rows.dtype == torch.int64


def test_a_long_span_takes_the_slots_of_its_blocks() -> None:
    table = [8, 2, 5, 1]
    batch = StepBuffers(64, CPU).fill([Span(list(range(40)), 10, 1, table)])
    expected = [table[position // 16] * 16 + position % 16 for position in range(10, 50)]
    assert batch.slots.tolist() == expected


def test_the_buffers_stay_where_they_are() -> None:
    buffers = StepBuffers(32, CPU)
    first = buffers.fill(SPANS)
    places = [tensor.data_ptr() for tensor in (first.ids, first.positions, first.slots, first.rows)]
    second = buffers.fill(SPANS[:1])
    assert [tensor.data_ptr() for tensor in (second.ids, second.positions, second.slots, second.rows)] == places
    assert second.ids.tolist() == [11]


@pytest.mark.parametrize(("buckets", "size"), [([8, 16], 8), ([16, 9, 32], 9), ([4], 8), ([], 8)])
def test_buckets(buckets: list[int], size: int) -> None:
    batch = StepBuffers(32, CPU, buckets=buckets).fill(SPANS)
    padding = size - 8
    assert batch.ids.tolist()[8:] == [0] * padding
    assert batch.slots.tolist()[8:] == [-1] * padding
    # What is captured for a bucket picks as many rows, whatever stands there.
    assert batch.rows.tolist() == [0, 5, 6, 7, *([0] * (size - 4) if size in buckets else [])]
    assert batch.plan.num_tokens == size


def test_too_much_for_the_buffers_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="8 tokens in buffers of 7"):
        StepBuffers(7, CPU).fill(SPANS)
    with pytest.raises(AssertionError, match="4 rows of logits in buffers of 3"):
        StepBuffers(32, CPU, max_num_rows=3).fill(SPANS)


def test_rows_are_fewer_than_tokens() -> None:
    buffers = StepBuffers(32, CPU, max_num_rows=5, buckets=[16])
    full, batch = buffers.full, buffers.fill(SPANS)
    assert (len(full.ids), len(full.rows)) == (32, 5)
    assert batch.rows.tolist() == [0, 5, 6, 7, 0]
    assert batch.rows.data_ptr() == full.rows.data_ptr()


def test_ids_that_the_host_does_not_know() -> None:
    buffers = StepBuffers(32, CPU, buckets=[4])
    batch = buffers.fill([Span([0], 16, 1, [4, 7]), Span([0], 3, 1, [5])], torch.tensor([61, 62]))
    assert batch.ids.tolist() == [61, 62, 0, 0]
    assert batch.positions.tolist() == [16, 3, 0, 0]
    assert buffers.fill([Span([9], 16, 1, [4, 7])]).ids.tolist() == [9, 0, 0, 0]
