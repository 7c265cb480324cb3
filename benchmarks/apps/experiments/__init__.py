"""The reference's experiments by name."""

from benchmarks.apps.bench import Experiment
from benchmarks.apps.experiments.multi_agent import MultiAgent
from benchmarks.apps.experiments.serving import Copilot, Gpts, Mixed
from benchmarks.apps.experiments.summarise import Chain, ChainBackground, ConcurrentChains, MapReduce

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        Chain(), ChainBackground(), ConcurrentChains(), MapReduce(), Copilot(), Gpts(), MultiAgent(), Mixed(),
    )
}  # fmt: skip
