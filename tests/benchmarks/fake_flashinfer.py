"""FlashInfer's wrappers as documented, in torch: to check what we hand to them where the package is not there."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

Cache = tuple[Tensor, Tensor]


class BatchPrefillWithPagedKVCacheWrapper:
    def __init__(self, workspace: Tensor, kv_layout: str = "NHD", *, backend: str = "auto") -> None:
        assert workspace.dtype == torch.uint8
        assert kv_layout == "HND"
        assert backend in ("auto", "fa2")

    def plan(
        self,
        qo_indptr: Tensor,
        paged_kv_indptr: Tensor,
        paged_kv_indices: Tensor,
        paged_kv_last_page_len: Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        page_size: int,
        *,
        causal: bool = False,
        q_data_type: torch.dtype = torch.float16,
        kv_data_type: torch.dtype | None = None,
    ) -> None:
        assert not causal
        given = (qo_indptr, paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len)
        assert {each.dtype for each in given} == {torch.int32}
        assert len(qo_indptr) == len(paged_kv_indptr) == len(paged_kv_last_page_len) + 1
        self._rows, self._pages, self._indices = qo_indptr.tolist(), paged_kv_indptr.tolist(), paged_kv_indices
        self._last, self._page_size = paged_kv_last_page_len.tolist(), page_size
        self._sizes, self._dtypes = (num_qo_heads, num_kv_heads, head_dim_qk), (q_data_type, kv_data_type)

    def run(self, q: Tensor, paged_kv_cache: Cache, *, return_lse: bool = False) -> Any:
        keys, values = paged_kv_cache
        assert (q.dtype, keys.dtype) == self._dtypes
        assert q.shape == (self._rows[-1], self._sizes[0], self._sizes[2])
        assert keys.shape[1:] == (self._sizes[1], self._page_size, self._sizes[2])
        out, lse = torch.zeros_like(q), torch.full(q.shape[:2], -math.inf)
        for i, last in enumerate(self._last):
            rows = slice(self._rows[i], self._rows[i + 1])
            pages = self._indices[self._pages[i] : self._pages[i + 1]].long()
            length = (len(pages) - 1) * self._page_size + last
            out[rows], lse[rows] = _attend(q[rows], keys[pages], values[pages], length)
        return (out, lse) if return_lse else out


class BatchDecodeWithPagedKVCacheWrapper(BatchPrefillWithPagedKVCacheWrapper):
    def __init__(self, workspace: Tensor, kv_layout: str = "NHD", *, use_tensor_cores: bool = False) -> None:
        super().__init__(workspace, kv_layout)

    def plan(self, indptr: Tensor, *given: Any, **options: Any) -> None:  # type: ignore[override]
        super().plan(torch.arange(len(indptr), dtype=torch.int32), indptr, *given, **options)


class MultiLevelCascadeAttentionWrapper:
    def __init__(self, num_levels: int, workspace: Tensor, kv_layout: str = "NHD") -> None:
        self._levels = [BatchPrefillWithPagedKVCacheWrapper(workspace, kv_layout) for _ in range(num_levels)]

    def plan(self, rows: Any, pages: Any, indices: Any, last: Any, *sizes: int, **options: Any) -> None:
        for wrapper, *level in zip(self._levels, rows, pages, indices, last, strict=True):
            wrapper.plan(*level, *sizes, **options)

    def run(self, q: Tensor, paged_kv_cache: Cache) -> Tensor:
        *above, own = self._levels
        out, lse = own.run(q, paged_kv_cache, return_lse=True)
        for wrapper in above:
            merge_state_in_place(out, lse, *wrapper.run(q, paged_kv_cache, return_lse=True))
        return out


class BatchAttention:
    def __init__(self, kv_layout: str = "NHD", device: str = "cuda") -> None:
        self._inner = BatchPrefillWithPagedKVCacheWrapper(torch.empty(1, dtype=torch.uint8), kv_layout)

    def plan(
        self,
        qo_indptr: Tensor,
        kv_indptr: Tensor,
        kv_indices: Tensor,
        kv_len_arr: Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        head_dim_vo: int,
        page_size: int,
        **options: Any,
    ) -> None:
        assert head_dim_qk == head_dim_vo
        last = ((kv_len_arr - 1) % page_size + 1).int()
        sizes = (num_qo_heads, num_kv_heads, head_dim_qk, page_size)
        self._inner.plan(qo_indptr, kv_indptr, kv_indices, last, *sizes, **options)
        assert kv_indptr.diff().tolist() == (-(-kv_len_arr // page_size)).tolist()

    def run(self, q: Tensor, kv_cache: Cache) -> tuple[Tensor, Tensor]:
        out, lse = self._inner.run(q, kv_cache, return_lse=True)
        return out, lse


def merge_state_in_place(v: Tensor, s: Tensor, v_other: Tensor, s_other: Tensor) -> None:
    """Log-sum-exps are of base 2."""
    assert v.is_contiguous()
    total = torch.logaddexp2(s, s_other)
    mine, other = torch.exp2(s - total)[..., None], torch.exp2(s_other - total)[..., None]
    v.copy_(v.float() * mine + v_other.float() * other)
    s.copy_(total)


def _attend(q: Tensor, keys: Tensor, values: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """q [rows, heads, dim] over pages [pages, kv_heads, page_size, dim]; every row sees ``length`` keys."""
    folded = q.float().unflatten(1, (keys.shape[1], -1))
    keys, values = (pages.float().transpose(0, 1).flatten(1, 2)[:, :length] for pages in (keys, values))
    scores = torch.einsum("rhgd,hkd->rhgk", folded, keys) * q.shape[-1] ** -0.5
    out = torch.einsum("rhgk,hkd->rhgd", scores.softmax(-1), values)
    return out.flatten(1, 2).to(q.dtype), scores.logsumexp(-1).flatten(1, 2) / math.log(2)
