"""The reference's experiments by name, and those of single features."""

from benchmarks.apps.bench import Experiment
from benchmarks.apps.experiments.multi_agent import MULTI_AGENT
from benchmarks.apps.experiments.serving import COPILOT, GPTS_SERVING, MIXED
from benchmarks.apps.experiments.situations import RETENTION, TASK_GROUPS
from benchmarks.apps.experiments.summarise import CHAIN, CHAIN_BACKGROUND, CONCURRENT_CHAINS, MAP_REDUCE

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        CHAIN,
        CHAIN_BACKGROUND,
        CONCURRENT_CHAINS,
        MAP_REDUCE,
        COPILOT,
        GPTS_SERVING,
        MULTI_AGENT,
        MIXED,
        RETENTION,
        TASK_GROUPS,
    )
}
