"""The workload, the same for every system."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Workload:
    """``num_jobs`` no-op jobs for the rate; ``num_hops`` jobs and ``num_chains`` chains of two, one at a time."""

    num_jobs: int = 10_000
    num_hops: int = 300
    num_chains: int = 150
    warmup: int = 20

    def scaled(self, factor: float) -> Workload:
        """Return a workload with fewer single jobs (for systems that poll twice a second)."""
        return dataclasses.replace(
            self, num_hops=max(10, round(self.num_hops * factor)), num_chains=max(5, round(self.num_chains * factor)),
            warmup=2,
        )  # fmt: skip
