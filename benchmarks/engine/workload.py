"""What is asked of every system: the same prompts, as token ids, at the same times."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

BATCHES = (1, 8, 32)
MAX_NUM_SEQS = 32
NUM_UNSPOKEN_IDS = 2 + 256 + 100
"""Special tokens, bytes and bare syllables, which prompts do not use."""
UTILISATION = 0.65
"""Poisson arrivals come at this part of what the fastest system does on ``shared`` with a full batch."""
POISSON_S = 6.0
"""How long requests keep coming, where that is between ``MIN_ARRIVALS`` and ``MAX_ARRIVALS`` of them."""
MIN_ARRIVALS, MAX_ARRIVALS = 48, 128


@dataclasses.dataclass(frozen=True, slots=True)
class Workload:
    """Prompts of ``num_shared`` tokens that all begin with and ``num_own`` of their own, ``num_output`` to generate."""

    name: str
    num_shared: int
    num_own: int
    num_output: int = 64

    def scaled(self, factor: int) -> Workload:
        """Return a workload ``factor`` times shorter, for trying things out."""
        return dataclasses.replace(
            self,
            num_shared=self.num_shared // factor,
            num_own=self.num_own // factor,
            num_output=self.num_output // factor,
        )


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("shared", 192, 64),
        Workload("unshared", 0, 256),
        Workload("long_prefix", 1024, 64),
        Workload("poisson", 192, 64),
    )
}


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """A workload at a batch size; for ``poisson`` that is the most that a system may run at once."""

    workload: Workload
    batch: int


@dataclasses.dataclass(frozen=True, slots=True)
class Requests:
    """One run of a case. ``prefix`` is run once before the clock starts; what is each prompt's own was never seen."""

    prefix: list[int]
    prompts: list[list[int]]
    arrivals_s: list[float]
    num_tokens: int


def requests_of(case: Case, vocab_size: int, seed: str, arrivals_s: Sequence[float] | None = None) -> Requests:
    """Return the requests of a run: a function of its arguments. Without ``arrivals_s`` all come at once."""
    source = random.Random(f"{case.workload.name} {case.batch} {seed}")
    first = min(NUM_UNSPOKEN_IDS, vocab_size // 2)

    def tokens(count: int) -> list[int]:
        return [source.randrange(first, vocab_size) for _ in range(count)]

    shared = tokens(case.workload.num_shared)
    arrivals_s = [0.0] * case.batch if arrivals_s is None else list(arrivals_s)
    prompts = [shared + tokens(case.workload.num_own) for _ in arrivals_s]
    return Requests(shared or tokens(case.workload.num_own), prompts, arrivals_s, case.workload.num_output)


def poisson_arrivals_s(best_tokens_per_s: float, num_output: int) -> list[float]:
    """Return times of arrival at ``UTILISATION`` of a throughput; the same call gives the same times."""
    rate = UTILISATION * best_tokens_per_s / num_output
    source, now_s, arrivals_s = random.Random("arrivals"), 0.0, []
    for _ in range(min(MAX_ARRIVALS, max(MIN_ARRIVALS, round(rate * POISSON_S)))):
        arrivals_s.append(now_s)
        now_s += source.expovariate(rate)
    return arrivals_s
