"""Agents that write a program together: an architect, coders, reviewers, and rounds of revising and reviewing.

The shape is the reference's (Parrot, OSDI'24, section 8.4): MetaGPT's roles, lengths of prompts and outputs from its
log of eight files; with more files the log's are used again. The prompts of a stage differ in their last 2.5 % alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from benchmarks.apps.application import Application, Calls, Function, Handle
from benchmarks.apps.bench import Bench, Experiment, Outcome, Point
from parrot_mq.messages import RequestShape

ARCHITECT = (182, 706)
"""Tokens of prompt and output."""
CODER, REVIEWER, REVISER = 2991, 3717, 4175
"""Tokens of a prompt."""
CODES = (506, 822, 229, 447, 417, 196, 279, 444)
REVIEWS = (308, 331, 324, 278, 261, 238, 410, 394)
REVISIONS = (511, 636, 254, 404, 424, 191, 172, 448)
"""Tokens of the output for each file."""
OWN_SHARE = 0.025
"""Of a prompt, what differs between the files: its name and what to do with it."""
MIN_FILLER = 60
"""Tokens of role and task that every prompt begins with."""
NUM_ROUNDS = 3


async def run_multi_agent(bench: Bench, *, files: int) -> Outcome:
    """One program on one engine."""
    return Outcome((await bench.driver.run("program", application(bench, files))).elapsed_s)


MULTI_AGENT = Experiment(
    name="multi-agent",
    profile="a100-13b",
    num_engines=1,
    shape=RequestShape(3700, 380, 3600),
    baselines=("latency-6144", "latency", "latency+cache", "throughput", "throughput+cache", "throughput+pages"),
    features=(
        "task_groups",
        "sibling_admission",
        "eager_prefill",
        "streamed_prefill",
        "prefix_caching",
        "shared_attention",
    ),
    points=tuple(Point(f"files={files}", {"files": files}, quick=files == 4) for files in (4, 8, 12, 16)),
    run=run_multi_agent,
)


@dataclasses.dataclass(frozen=True, slots=True)
class _Output:
    handle: Handle
    num_tokens: int


def application(bench: Bench, files: int) -> Application:
    """Return the application for so many files. It is for whatever nobody reads in the end."""

    def build(calls: Calls) -> Sequence[Handle]:
        unread: dict[int, Handle] = {}

        def stage(role: str, prompt: int, lengths: Sequence[int], read: Sequence[_Output]) -> list[_Output]:
            outputs = []
            own = max(1, round(OWN_SHARE * prompt))
            room = prompt - own - MIN_FILLER
            fitting: list[_Output] = []
            for output in read:
                if output.num_tokens > room:
                    break
                room -= output.num_tokens
                fitting.append(output)
            # What the inputs and the own part leave of the prompt is role and task, in front.
            scaled = [bench.scale.length(output.num_tokens) for output in fitting]
            filler = bench.scale.length(prompt) - bench.scale.length(own) - sum(scaled)
            head = bench.texts.text(filler, role)
            for number in range(files):
                name = bench.text(own, role, "file", number)
                length = lengths[number % len(lengths)]
                parts = (head, *[""] * len(fitting), "")
                function = Function(role, parts, bench.scale.length(length))
                handle = calls.call(function, *(output.handle for output in fitting), name)
                outputs.append(_Output(handle, length))
                unread[id(handle)] = handle
            for output in fitting:
                unread.pop(id(output.handle), None)
            return outputs

        architect = Function("architect", (bench.text(ARCHITECT[0], "architect"),), bench.scale.length(ARCHITECT[1]))
        apis = _Output(calls.call(architect), ARCHITECT[1])
        codes = stage("coder", CODER, CODES, [apis])
        for _ in range(1 + NUM_ROUNDS):
            reviews = stage("reviewer", REVIEWER, REVIEWS, codes)
            codes = stage("reviser", REVISER, REVISIONS, [*codes[: len(CODES)], *reviews])
        return list(unread.values())

    return build
