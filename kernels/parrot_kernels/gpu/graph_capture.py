"""Who captures a step's launches: CUDA, or, where kernels are interpreted, somebody who only seems to."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Protocol

import torch


class GraphCapture(Protocol):
    """Captures what functions launch."""

    def capture(self, compute: Callable[[], None]) -> Callable[[], None]:
        """Run ``compute``, then capture it; return what replays its launches over the same memory.

        In the first run it may allocate what stays, compile, and copy from the host. Replays must follow one another:
        they have the same memory for intermediate results.
        """

    @property
    def nbytes(self) -> int:
        """Bytes on the device that capturing took."""


class CudaGraphs:
    """CUDA graphs of a device that share a pool of memory: capture the largest first, so that others fit into it.

    Launches are captured on a stream of their own, as CUDA wants it, and replayed on the current one.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        torch.cuda.empty_cache()
        self._reserved = torch.cuda.memory_reserved(device)
        self._nbytes = 0

    @property
    def nbytes(self) -> int:
        """Bytes that the allocator took meanwhile."""
        return self._nbytes

    def capture(self, compute: Callable[[], None]) -> Callable[[], None]:
        """Capture ``compute``; errors of CUDA are raised as they come."""
        with torch.cuda.device(self._device):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                # On the stream of the capture, for cuBLAS has a workspace for each.
                compute()
            graph = torch.cuda.CUDAGraph()
            # Only what this thread does counts: others may be in the middle of anything.
            with (
                _no_collection(),
                torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"),
            ):
                compute()
            self._nbytes = max(0, torch.cuda.memory_reserved(self._device) - self._reserved)
        return graph.replay


class CalledAgain:
    """Stands in for CUDA graphs on a CPU: a replay calls the function again, on the same tensors."""

    nbytes = 0

    def capture(self, compute: Callable[[], None]) -> Callable[[], None]:
        """Compute once, as to warm up."""
        compute()
        return compute


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python from collecting garbage: what is finalised may call CUDA, which ends a capture."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
