"""The operations of a transformer step, and the one place that picks who computes them.

On a CPU that is C++ compiled at first use (``parrot_kernels.cpu``), on a GPU Triton (``parrot_kernels.gpu``), else
torch (``parrot_kernels.torch_backend``). All compute the same functions. ``PARROT_MQ_KERNELS`` forces one: ``torch``,
``cpu`` or ``triton``; then a failing build is an error, and Triton's kernels are interpreted on a CPU, for tests.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from parrot_kernels.attention_plan import AttentionPlan
from parrot_kernels.cpu.backend import CpuBackend
from parrot_kernels.errors import KernelBuildError, KernelInputError
from parrot_kernels.linear import PackedLinear
from parrot_kernels.torch_backend import TorchBackend

ENVIRONMENT = "PARROT_MQ_KERNELS"

logger = logging.getLogger(__name__)


class CapturedStep(Protocol):
    """A step that was captured; not for several threads at once."""

    def run(self, num_tokens: int, num_picked: int, plan: AttentionPlan) -> Tensor:
        """Run it on the first rows of its inputs; return the rows of its result.

        They may lie in a buffer that the next run overwrites. Raises ``KernelInputError`` for more rows than were
        captured, a plan for other ones, and indices outside what they index.
        """

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers of its intermediate results."""

    @property
    def seconds(self) -> dict[str, float]:
        """Time by kind of operation, summed over all runs; empty where it is not measured."""


Step = Callable[["Backend", Sequence[Tensor], Sequence[Tensor], AttentionPlan], Tensor]
"""A step as ``Backend.capture`` takes it: ``step(backend, tokens, picked, plan)``."""


class Backend(Protocol):
    """The operations. Tensors are of one dtype and device unless said otherwise; results are new, contiguous tensors.

    ``KernelInputError`` is raised for shapes, dtypes and slots that do not fit. On a GPU no number is looked at, since
    the host would have to wait for it: a slot outside the cache is not stored, an index outside is a CUDA error.
    """

    name: str

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Root-mean-square norm over the last dimension of ``x`` [..., dim], times ``weight`` [dim].

        For a norm per head give x as [tokens, heads, head_dim].
        """

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Return (normed, total) with total = x + residual rounded to the dtype, normed = rms_norm(total)."""

    def rope_and_store(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cos: Tensor,
        sin: Tensor,
        slots: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        *,
        key_scale: float = 1.0,
        value_scale: float = 1.0,
    ) -> Tensor:
        """Rotate ``query`` and ``key``, write key and value to the cache, return the rotated query.

        query is [tokens, heads, dim], key [tokens, kv_heads, dim], value [tokens, kv_heads, value_dim]; they may be
        slices of one fused projection. The first 2 * half dimensions are rotated, i with i + half (transformers'
        rotate_half); ``cos`` and ``sin`` are [tokens, half] in float32 (float64 for float64 input). ``slots`` [tokens]
        in int64 is block * 16 + offset, or negative: such a row is not stored. The caches are [blocks, kv_heads, 16,
        dim]. They may be float8_e4m3fn: then they hold key / key_scale and value / value_scale, see
        ``parrot_kernels.fp8``. Other scales than 1 are for those alone.
        """

    def paged_attention(
        self,
        query: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        plan: AttentionPlan,
        *,
        scale: float,
        softcap: float | None = None,
        window: int | None = None,
        key_scale: float = 1.0,
        value_scale: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """Causal attention of ``query`` [tokens, heads, dim] over the cached keys, by the plan's pieces.

        heads is a multiple of kv_heads. Scores are scale * q.k, passed through softcap * tanh(x / softcap) where given;
        with a ``window`` w a token sees the last w tokens, itself included. The scales are those that the caches were
        written with. Returns (out [tokens, heads, value_dim],
        lse [tokens, heads] in float32, natural logarithm).
        """

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """Return silu(gate) * up [..., width] of ``gate_up`` [..., 2 * width], gate first."""

    def pack_linear(self, weight: Tensor, bias: Tensor | None = None) -> PackedLinear:
        """Lay out ``weight`` [out_features, in_features] for ``linear``; the original may then be freed."""

    def linear(self, x: Tensor, packed: PackedLinear, dtype: torch.dtype | None = None) -> Tensor:
        """Return x @ weight.T + bias [..., out_features] for ``x`` [..., in_features] of the weight's dtype.

        ``dtype`` is x.dtype or float32: logits, say, that need not be rounded to bfloat16.
        """

    def gather(self, table: Tensor | PackedLinear, index: Tensor) -> Tensor:
        """Return the rows ``index`` [rows] (int64) of ``table`` [any, width], any dtype.

        The table may be the weight of a linear layer, exactly as it was packed: a model whose embedding is its head
        holds one of them.
        """

    def sample(
        self, logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, keys: Tensor
    ) -> Tensor:
        """Return a token id for each row of ``logits`` [rows, vocab] in float32 (rows may be strided): int64 [rows].

        The others say how: ``temperature`` float32 [rows], 0 for the arg-max (the lowest id of equals); ``top_k`` int32
        [rows], 0 for all; ``top_p`` and ``min_p`` float32 [rows], 1 and 0 for all; they apply in that order, and
        ``keys`` int32 [rows, 2] make the Gumbel noise of ``parrot_kernels.sampling``. Tokens that tie with the last of
        the top k are allowed. Not for steps that are captured.
        """

    def capture(
        self,
        step: Step,
        tokens: Sequence[Tensor],
        picked: Sequence[Tensor],
        *,
        buckets: Sequence[int] = (),
        max_context: int = 0,
    ) -> CapturedStep | None:
        """Capture ``step`` so that it can be run again without Python; None where it cannot.

        ``step(backend, tokens, picked, plan)`` calls all its operations on the backend that it is given, and returns
        the result of one, which has a row for each picked row. It is a function of the tensors it is given: first rows
        of the static buffers ``tokens`` (with a row for each of the most tokens of a step) and ``picked`` (with a row
        for each of the most rows picked of them by ``gather``); to run it, they are filled from the start. The plan
        that it is given stands for those of the runs. A CPU captures it once, for any number of rows. A GPU captures it
        for each of ``buckets``, numbers of tokens, of sequences with up to ``max_context`` keys; other numbers of
        tokens run eagerly, and so does all without buckets. It computes while it is captured, on what the buffers hold
        then. A step that cannot be captured is logged, and must be run eagerly.
        """


def backend_for(device: torch.device | str) -> Backend:
    """Return the backend for tensors on ``device``; what has to be compiled for it is.

    Raises ``KernelInputError`` if PARROT_MQ_KERNELS names no backend of this device, ``KernelBuildError`` if it demands
    a compiled one and that cannot be built.
    """
    wanted = os.environ.get(ENVIRONMENT, "")
    device = torch.device(device)
    if wanted not in ("", "torch", "cpu", "triton") or (wanted == "cpu" and device.type != "cpu"):
        raise KernelInputError(
            f"{ENVIRONMENT}={wanted} is no backend for {device.type}: use torch or triton, or cpu on a CPU, or unset it"
        )
    if wanted == "cpu":
        return _cpu_backend()
    if wanted == "triton":
        return _gpu_backend(device)
    return _compiled_or_torch(device) if wanted == "" and device.type in ("cpu", "cuda") else TorchBackend()


@functools.cache
def _cpu_backend() -> CpuBackend:
    return CpuBackend()


@functools.cache
def _gpu_backend(device: torch.device) -> Backend:
    try:
        from parrot_kernels.gpu.backend import GpuBackend  # triton is not everywhere
    except ImportError as error:
        raise KernelBuildError(f"the GPU's operations need triton: {error}") from error
    return GpuBackend(device)


@functools.cache
def _compiled_or_torch(device: torch.device) -> Backend:
    try:
        return _cpu_backend() if device.type == "cpu" else _gpu_backend(device)
    except KernelBuildError as error:
        logger.warning("computing with torch alone, which is slower: %s", error)
        return TorchBackend()
