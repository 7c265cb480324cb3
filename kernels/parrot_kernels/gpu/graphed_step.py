"""A step of a model as graphs, one for each number of tokens that it is replayed for."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from parrot_kernels.attention_plan import AttentionPlan
from parrot_kernels.errors import KernelCaptureError, KernelInputError
from parrot_kernels.gpu.graph_capture import GraphCapture
from parrot_kernels.gpu.step_plans import StepPlans

if TYPE_CHECKING:
    from parrot_kernels.backend import Backend, Step


class GraphedStep:
    """A ``CapturedStep`` of ``step``: a batch of as many tokens as one of ``buckets`` is replayed, others run eagerly.

    ``tokens`` and ``picked`` are the static buffers, see ``Backend.capture``; a graph reads the first rows of them. The
    caller pads its batches to a bucket: with tokens that are stored nowhere and attend to nothing. All graphs write
    their result to one buffer. Raises ``KernelCaptureError`` for a step that cannot be captured.
    """

    def __init__(
        self,
        backend: Backend,
        step: Step,
        tokens: Sequence[Tensor],
        picked: Sequence[Tensor],
        *,
        buckets: Sequence[int],
        plans: StepPlans,
        graphs: GraphCapture,
    ) -> None:
        self.max_tokens, self.max_picked = tokens[0].shape[0], picked[0].shape[0]
        self._backend = backend
        self._step = step
        self._tokens, self._picked = tokens, picked
        self._plans = plans
        self._graphs = graphs
        self._out: Tensor | None = None
        self._replays: dict[tuple[int, bool], Callable[[], None]] = {}
        # The largest first: its memory has room for all others, its result too.
        for bucket in sorted(buckets, reverse=True):
            self._capture(bucket, wide=False)
            if plans.is_wide(bucket):
                self._capture(bucket, wide=True)

    @property
    def nbytes(self) -> int:
        """Bytes of intermediate results, the result, and the plans."""
        # The allocator that graphs take theirs from has also given the result and the plans.
        out = self._out.nbytes if self._out is not None else 0
        return max(self._graphs.nbytes, out + self._plans.nbytes)

    @property
    def seconds(self) -> dict[str, float]:
        """Nothing: a graph is not cut into kinds of operations. A profiler shows them."""
        return {}

    def run(self, num_tokens: int, num_picked: int, plan: AttentionPlan) -> Tensor:
        """Compute the step; see ``CapturedStep``. Nothing is waited for.

        A plan that does not share runs eagerly, with the tiles that keep its promise.
        """
        if not (1 <= num_tokens <= self.max_tokens and 0 <= num_picked <= self.max_picked):
            raise KernelInputError(
                f"{num_tokens} tokens and {num_picked} picked rows: captured for 1 to {self.max_tokens} and up to "
                f"{self.max_picked}"
            )
        if num_tokens != plan.num_tokens:
            raise KernelInputError(f"a plan for {plan.num_tokens} tokens, with {num_tokens} tokens")
        if (num_tokens, False) not in self._replays or not plan.share:
            return self._compute(num_tokens, num_picked, plan)
        if num_picked > num_tokens:
            raise KernelInputError(f"{num_picked} rows picked of {num_tokens} tokens: captured for one of each")
        self._replays[num_tokens, self._plans.update(plan)]()
        assert self._out is not None, "a graph without a result"
        return self._out[:num_picked]

    def _capture(self, num_tokens: int, *, wide: bool) -> None:
        num_picked = min(num_tokens, self.max_picked)
        plan = self._plans.stand_in(num_tokens, wide=wide)
        compute = functools.partial(self._compute_out, num_tokens, num_picked, plan)
        self._replays[num_tokens, wide] = self._graphs.capture(compute)

    def _compute_out(self, num_tokens: int, num_picked: int, plan: AttentionPlan) -> None:
        result = self._compute(num_tokens, num_picked, plan)
        if result.shape[0] != num_picked:
            raise KernelCaptureError("what the step returns has no row for each picked row")
        if self._out is None:
            self._out = torch.empty_like(result)
        self._out[:num_picked].copy_(result)

    def _compute(self, num_tokens: int, num_picked: int, plan: AttentionPlan) -> Tensor:
        tokens = [each[:num_tokens] for each in self._tokens]
        picked = [each[:num_picked] for each in self._picked]
        return self._step(self._backend, tokens, picked, plan)
