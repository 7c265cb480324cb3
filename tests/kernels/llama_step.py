"""A Llama with random weights, written with a backend's operations: what programs are tested and measured with."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from parrot_kernels import AttentionPlan, Backend, PackedLinear

BLOCK = 16


@dataclasses.dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a model."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    dim: int
    vocab: int
    qk_norm: bool = False
    window: int | None = None
    softcap: float | None = None
    tied: bool = False


MODEL_S = Shape(512, 1408, 8, 8, 4, 64, 4096)
MODEL_L = Shape(1024, 4096, 24, 16, 8, 64, 32000)


class LlamaStep:
    """The model with its cache and the static inputs of a step: ``ids``, ``positions``, ``slots`` and ``rows``."""

    def __init__(
        self, backend: Backend, shape: Shape, dtype: torch.dtype, *, num_blocks: int, max_tokens: int, max_rows: int
    ) -> None:
        torch.manual_seed(0)
        self.backend, self.shape = backend, shape

        def weight(*size: int) -> Tensor:
            return (torch.randn(size) / size[-1] ** 0.5).to(dtype)

        s = shape
        qkv = (s.heads + 2 * s.kv_heads) * s.dim
        self.layers = [
            {
                "qkv": backend.pack_linear(weight(qkv, s.hidden), weight(qkv)),
                "o": backend.pack_linear(weight(s.hidden, s.heads * s.dim)),
                "gate_up": backend.pack_linear(weight(2 * s.intermediate, s.hidden)),
                "down": backend.pack_linear(weight(s.hidden, s.intermediate)),
            }
            for _ in range(s.layers)
        ]
        self.head = backend.pack_linear(weight(s.vocab, s.hidden))
        self.embedding: Tensor | PackedLinear = self.head if s.tied else weight(s.vocab, s.hidden)
        self.norm, self.head_norm = 1 + weight(s.hidden), 1 + weight(s.dim)
        angle = torch.outer(torch.arange(4096), 1e4 ** -(torch.arange(s.dim // 2) / (s.dim // 2)))
        self.cos, self.sin = angle.cos(), angle.sin()
        cache = (num_blocks, s.kv_heads, BLOCK, s.dim)
        self.keys = [torch.randn(cache).to(dtype) for _ in range(s.layers)]
        self.values = [torch.randn(cache).to(dtype) for _ in range(s.layers)]
        self.ids, self.positions, self.slots = (torch.zeros(max_tokens, dtype=torch.int64) for _ in range(3))
        self.rows = torch.zeros(max_rows, dtype=torch.int64)

    def forward(
        self, kernels: Backend, ids: Tensor, positions: Tensor, slots: Tensor, rows: Tensor, plan: AttentionPlan
    ) -> Tensor:
        """Return the logits [rows, vocab] in float32."""
        s = self.shape
        residual, out = None, kernels.gather(self.embedding, ids)
        cos, sin = kernels.gather(self.cos, positions), kernels.gather(self.sin, positions)
        for layer, keys, values in zip(self.layers, self.keys, self.values, strict=True):
            if residual is None:
                normed, residual = kernels.rms_norm(out, self.norm, 1e-5), out
            else:
                normed, residual = kernels.add_rms_norm(out, residual, self.norm, 1e-5)
            qkv = kernels.linear(normed, layer["qkv"])
            query, key, value = qkv.split([s.heads * s.dim, s.kv_heads * s.dim, s.kv_heads * s.dim], -1)
            query, key, value = (x.view(x.shape[0], -1, s.dim) for x in (query, key, value))
            if s.qk_norm:
                query, key = (kernels.rms_norm(x, self.head_norm, 1e-5) for x in (query, key))
            query = kernels.rope_and_store(query, key, value, cos, sin, slots, keys, values)
            attended, _ = kernels.paged_attention(
                query, keys, values, plan, scale=s.dim**-0.5, window=s.window, softcap=s.softcap
            )
            out = kernels.linear(attended.flatten(1), layer["o"])
            normed, residual = kernels.add_rms_norm(out, residual, self.norm, 1e-5)
            out = kernels.linear(kernels.silu_mul(kernels.linear(normed, layer["gate_up"])), layer["down"])
        picked, residual = kernels.gather(out, rows), kernels.gather(residual, rows)
        normed, _ = kernels.add_rms_norm(picked, residual, self.norm, 1e-5)
        return kernels.linear(normed, self.head, torch.float32)

    def fill(self, query_lens: list[int], contexts: list[int], tables: list[list[int]], seed: int = 0) -> int:
        """Set the inputs for a step that wants the logits of each sequence's last token; return how many tokens."""
        positions, slots, rows = [], [], []
        for length, context, table in zip(query_lens, contexts, tables, strict=True):
            positions += range(context - length, context)
            slots += [table[p // BLOCK] * BLOCK + p % BLOCK for p in range(context - length, context)]
            rows.append(len(positions) - 1)
        n = len(positions)
        generator = torch.Generator().manual_seed(seed)
        self.ids[:n] = torch.randint(self.shape.vocab, (n,), generator=generator, device="cpu").to(self.ids.device)
        self.positions[:n], self.slots[:n] = torch.tensor(positions), torch.tensor(slots)
        self.rows[: len(rows)] = torch.tensor(rows)
        return n

    def eager(self, num_tokens: int, num_rows: int, plan: AttentionPlan) -> Tensor:
        """Compute the step that ``fill`` set."""
        n = num_tokens
        return self.forward(self.backend, self.ids[:n], self.positions[:n], self.slots[:n], self.rows[:num_rows], plan)

    def inputs(self) -> tuple[list[Tensor], list[Tensor]]:
        """The static inputs, as ``Backend.capture`` wants them."""
        return [self.ids, self.positions, self.slots], [self.rows]

    def step(self, kernels: Backend, tokens: Sequence[Tensor], picked: Sequence[Tensor], plan: AttentionPlan) -> Tensor:
        """The step to capture."""
        return self.forward(kernels, *tokens, *picked, plan)
