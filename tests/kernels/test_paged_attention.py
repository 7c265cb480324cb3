"""The torch twin against dense float64 attention written out token by token, on odd shapes."""

from __future__ import annotations

import importlib
import itertools
import math

import pytest
import torch
from torch import Tensor

from parrot_kernels import BLOCK_SIZE, AttentionPlan, KernelInputError
from parrot_kernels.merge import merge_attention
from parrot_kernels.paged_attention import paged_attention
from parrot_kernels.query_group import grouped

NUM_BLOCKS = 40


class Case:
    """Sequences with (cached, new) token counts in scattered blocks, their keys and values already in the cache."""

    def __init__(
        self, lengths: list[tuple[int, int]], heads: tuple[int, int], dims: tuple[int, int], dtype: torch.dtype
    ) -> None:
        torch.manual_seed(len(lengths) + sum(heads) + sum(dims))
        num_heads, num_kv_heads = heads
        free = torch.randperm(NUM_BLOCKS).tolist()
        contexts = [cached + new for cached, new in lengths]
        tables = [[free.pop() for _ in range(-(-context // BLOCK_SIZE))] for context in contexts]
        self.plan = AttentionPlan([new for _, new in lengths], contexts, tables)
        self.keys = [torch.randn(c, num_kv_heads, dims[0], dtype=dtype) for c in contexts]
        self.values = [torch.randn(c, num_kv_heads, dims[1], dtype=dtype) for c in contexts]
        self.query = torch.randn(self.plan.num_tokens, num_heads, dims[0], dtype=dtype)
        # What lies in blocks and slots that nobody should see is large, so that seeing it shows.
        self.key_cache = torch.full((NUM_BLOCKS, num_kv_heads, BLOCK_SIZE, dims[0]), 50.0, dtype=dtype)
        self.value_cache = torch.full((NUM_BLOCKS, num_kv_heads, BLOCK_SIZE, dims[1]), 50.0, dtype=dtype)
        for cache, parts in [(self.key_cache, self.keys), (self.value_cache, self.values)]:
            for table, part in zip(tables, parts, strict=True):
                for position, row in enumerate(part):
                    cache[table[position // BLOCK_SIZE], :, position % BLOCK_SIZE] = row

    def dense(self, scale: float, softcap: float | None, window: int | None) -> tuple[Tensor, Tensor]:
        outs, lses = [], []
        row = 0
        lengths = zip(self.plan.query_lens, self.plan.context_lens, self.keys, self.values, strict=True)
        for new, context, keys, values in lengths:
            fold = self.query.shape[1] // keys.shape[1]
            for position in range(context - new, context):
                first = 0 if window is None else max(0, position - window + 1)
                k = keys[first : position + 1].double().repeat_interleave(fold, 1)
                v = values[first : position + 1].double().repeat_interleave(fold, 1)
                scores = torch.einsum("hd,nhd->hn", self.query[row].double(), k) * scale
                if softcap is not None:
                    scores = softcap * torch.tanh(scores / softcap)
                outs.append(torch.einsum("hn,nhd->hd", scores.softmax(-1), v))
                lses.append(scores.logsumexp(-1))
                row += 1
        return torch.stack(outs), torch.stack(lses)


SHAPES = {
    "one token": [(0, 1)],
    "decode": [(15, 1), (16, 1), (31, 1), (0, 1), (47, 1)],
    "decode, far apart": [(200, 1), (3, 1), (130, 1)],
    "prefill": [(0, 5), (0, 16), (0, 17)],
    "long prefill": [(0, 90)],
    "long extend": [(33, 70)],
    "everything": [(100, 1), (20, 1), (0, 80), (17, 65), (5, 7), (40, 6), (16, 16)],
}
HEADS = [(1, 1), (6, 2), (7, 7)]


@pytest.mark.parametrize("lengths", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("heads", HEADS)
def test_against_dense_float64(lengths: list[tuple[int, int]], heads: tuple[int, int]) -> None:
    case = Case(lengths, heads, (24, 24), torch.float32)
    for softcap, window in [(None, None), (3.0, None), (None, 9), (2.0, 40)]:
        out, lse = paged_attention(
            case.query, case.key_cache, case.value_cache, case.plan,
            scale=0.3, softcap=softcap, window=window,
        )  # fmt: skip
        expected_out, expected_lse = case.dense(0.3, softcap, window)
        torch.testing.assert_close(out.double(), expected_out, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dims", [(8, 8), (40, 24), (128, 128)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 3e-2), (torch.float16, 4e-3), (torch.float64, 1e-6)])
def test_dtypes_and_head_dims(dims: tuple[int, int], dtype: torch.dtype, tolerance: float) -> None:
    case = Case(SHAPES["everything"], (4, 2), dims, dtype)
    out, lse = paged_attention(case.query, case.key_cache, case.value_cache, case.plan, scale=dims[0] ** -0.5)
    assert (out.dtype, lse.dtype) == (dtype, torch.float32)
    expected, _ = case.dense(dims[0] ** -0.5, None, None)
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)


def test_dense_path_cuts_what_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    # The package's function of the same name hides the module from attribute access.
    monkeypatch.setattr(importlib.import_module("parrot_kernels.paged_attention"), "MAX_DENSE_SCORES", 500)
    case = Case([(30, 20), (60, 1), (50, 1)], (6, 2), (24, 24), torch.float32)
    out, _ = paged_attention(case.query, case.key_cache, case.value_cache, case.plan, scale=0.3, softcap=3.0)
    torch.testing.assert_close(out.double(), case.dense(0.3, 3.0, None)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lengths", SHAPES.values(), ids=SHAPES.keys())
def test_padding_rows_see_nothing(lengths: list[tuple[int, int]]) -> None:
    case = Case(lengths, (6, 2), (24, 24), torch.float32)
    plan, num_tokens = case.plan, case.plan.num_tokens
    padded = AttentionPlan(plan.query_lens, plan.context_lens, plan.block_tables, num_rows=num_tokens + 3)
    query = torch.cat([case.query, torch.full((3, 6, 24), 50.0)])
    out, lse = paged_attention(query, case.key_cache, case.value_cache, padded, scale=0.3)
    torch.testing.assert_close(out[:num_tokens].double(), case.dense(0.3, None, None)[0], rtol=1e-5, atol=1e-5)
    assert torch.equal(out[num_tokens:], torch.zeros(3, 6, 24))
    assert bool(torch.isneginf(lse[num_tokens:]).all())


def test_a_batch_that_does_not_fit_its_rows() -> None:
    with pytest.raises(KernelInputError, match="3 new tokens do not fit 2 rows"):
        AttentionPlan([3], [3], [[0]], num_rows=2)


def test_groups_cover_every_sequence_once_and_pad_little() -> None:
    lengths = [(i * 37 % 400, 1 + i * 13 % 100) for i in range(50)]
    contexts = [cached + new for cached, new in lengths]
    members = grouped([new for _, new in lengths], contexts)
    assert sorted(itertools.chain(*members)) == list(range(50))
    for group in members:
        group_contexts = [contexts[i] for i in group]
        assert max(group_contexts) <= max(128, 2 * min(group_contexts))


def test_merge_of_disjoint_keys_is_attention_over_their_union() -> None:
    torch.manual_seed(0)
    scores, values = torch.randn(3, 2, 10, dtype=torch.float64), torch.randn(3, 10, 4, dtype=torch.float64)

    def part(first: int, last: int) -> tuple[Tensor, Tensor]:
        piece = scores[..., first:last]
        return piece.softmax(-1) @ values[:, first:last], piece.logsumexp(-1)

    out, lse = merge_attention(*part(0, 7), *part(7, 10))
    expected_out, expected_lse = part(0, 10)
    torch.testing.assert_close(out, expected_out, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(lse, expected_lse)


def test_merge_with_an_empty_part() -> None:
    out, lse = torch.ones(2, 4), torch.tensor([0.5, -math.inf])
    empty, nothing = torch.full((2, 4), math.nan), torch.full((2,), -math.inf)
    merged, merged_lse = merge_attention(out, lse, empty, nothing)
    assert torch.equal(merged[0], out[0])
    assert torch.equal(merged[1], torch.zeros(4))
    assert torch.equal(merged_lse, lse)
