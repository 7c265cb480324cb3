"""What is measured of one system in one round."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True, slots=True)
class Figures:
    """Times in milliseconds.

    ``hop``: submit until an engine (a worker) has the request (the job). ``chain_hop``: one completion until the
    dependent is on an engine. ``result``: submit until the result is in the caller's hands. ``requests_per_s``:
    submitted, run, and all results read.
    """

    hop_p50_ms: float
    hop_p99_ms: float
    chain_hop_p50_ms: float
    result_p50_ms: float
    requests_per_s: float

    @classmethod
    def of(
        cls, hops_s: Sequence[float], chain_hops_s: Sequence[float], results_s: Sequence[float], rate: float
    ) -> Figures:
        """Summarise samples, in seconds."""
        return cls(
            hop_p50_ms=round(statistics.median(hops_s) * 1000, 3),
            hop_p99_ms=round(quantile(hops_s, 0.99) * 1000, 3),
            chain_hop_p50_ms=round(statistics.median(chain_hops_s) * 1000, 3),
            result_p50_ms=round(statistics.median(results_s) * 1000, 3),
            requests_per_s=round(rate, 1),
        )

    @classmethod
    def median(cls, rounds: Sequence[Figures]) -> Figures:
        """Return the median of each figure over the rounds."""
        return cls(**{name: statistics.median(getattr(r, name) for r in rounds) for name in FIELDS})


FIELDS = tuple(field.name for field in dataclasses.fields(Figures))


def quantile(values: Sequence[float], q: float) -> float:
    """Return the q-quantile by the nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]
