"""How long calls take on a device: recorded once, replayed many times, systems in turn.

On a GPU a recording is a CUDA graph of all calls, replayed between two events, so that the host's part is left out;
what cannot be captured is launched call by call, and says so.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch

Call = Callable[[], torch.Tensor]
MIN_SAMPLE_S = 4e-3
"""A sample replays a recording for at least so long."""
MAX_REPLAYS = 400


@dataclasses.dataclass(frozen=True, slots=True)
class Timing:
    """Samples in seconds, one for each round."""

    seconds: Sequence[float]

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """(largest - smallest) / median."""
        return (max(self.seconds) - min(self.seconds)) / self.median_s


class Recording(Protocol):
    """Calls that were recorded."""

    outputs: list[torch.Tensor]
    """What the calls gave; a replay writes them again."""
    is_graph: bool

    def replay(self) -> None:
        """Run all calls; on a GPU, without waiting."""

    def sample_s(self) -> float:
        """Return the seconds of one call, by many replays."""


class Clock(Protocol):
    """Makes recordings for a device."""

    def record(self, calls: Sequence[Call], *, graph: bool = True) -> Recording:
        """Record ``calls``, as a graph if asked. Raises RuntimeError where they cannot be captured."""

    def synchronize(self) -> None:
        """Wait until the device is idle."""


def alternate(recordings: Mapping[str, Recording], rounds: int) -> dict[str, Timing]:
    """Sample each recording once a round, after one that does not count; nobody always comes after the same one."""
    names = list(recordings)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-1, rounds):
        turn = number % max(1, len(names))
        for name in names[turn:] + names[:turn]:
            seconds = recordings[name].sample_s()
            if number >= 0:
                samples[name].append(seconds)
    return {name: Timing(taken) for name, taken in samples.items()}


def host_seconds(call: Callable[[], object], clock: Clock, rounds: int) -> float:
    """Return the median time of ``call`` as the host sees it, until the device is done too."""
    taken = []
    for number in range(-1, rounds):
        clock.synchronize()
        start = time.perf_counter()
        call()
        clock.synchronize()
        if number >= 0:
            taken.append(time.perf_counter() - start)
    return statistics.median(taken)


class CudaRecording:
    """See ``Recording``. Without a graph the calls are queued one by one, which the host may be too slow for."""

    def __init__(self, calls: Sequence[Call], *, graph: bool, pool: Any) -> None:
        self._calls = list(calls)
        self.is_graph = graph
        self._graph = None
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # what is compiled or allocated at the first call is, before the capture
            self.outputs = [call() for call in self._calls]
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        if graph:
            captured = torch.cuda.CUDAGraph()
            with torch.cuda.graph(captured, pool=pool):
                self.outputs = [call() for call in self._calls]
            self._graph = captured
        self._replays = 1

    def replay(self) -> None:
        if self._graph is not None:
            self._graph.replay()
        else:
            self.outputs = [call() for call in self._calls]

    def sample_s(self) -> float:
        seconds = self._run_s(self._replays)
        if seconds < MIN_SAMPLE_S and self._replays < MAX_REPLAYS:
            self._replays = min(MAX_REPLAYS, math.ceil(self._replays * MIN_SAMPLE_S / max(seconds, 1e-6)))
            seconds = self._run_s(self._replays)
        return seconds / self._replays / len(self._calls)

    def _run_s(self, replays: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(replays):
            self.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000


class CudaClock:
    """Times the current CUDA device. Its graphs have one memory for what they need only while they run."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, calls: Sequence[Call], *, graph: bool = True) -> Recording:
        return CudaRecording(calls, graph=graph, pool=self._pool)

    def synchronize(self) -> None:
        torch.cuda.synchronize()


class HostRecording:
    """See ``Recording``; runs the calls by the host's clock."""

    is_graph = False

    def __init__(self, calls: Sequence[Call]) -> None:
        self._calls = list(calls)
        self.replay()

    def replay(self) -> None:
        self.outputs = [call() for call in self._calls]

    def sample_s(self) -> float:
        start = time.perf_counter()
        self.replay()
        return (time.perf_counter() - start) / len(self._calls)


class HostClock:
    """Times a CPU."""

    def record(self, calls: Sequence[Call], *, graph: bool = True) -> Recording:
        return HostRecording(calls)

    def synchronize(self) -> None:
        """A CPU is idle."""


def clock_for(device: torch.device) -> Clock:
    """Return a new clock: memory of its graphs is given back with the last of them."""
    return CudaClock() if device.type == "cuda" else HostClock()
