"""Agents that write a program together: an architect, coders, reviewers, and rounds of revising and reviewing.

The shape is the reference's (Parrot, OSDI'24, section 8.4): MetaGPT's roles, lengths of prompts and outputs from its
log of eight files; with more files the log's are used again. The prompts of a stage differ in their last 2.5 % alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from benchmarks.apps.application import Application, Calls, Function, Handle
from benchmarks.apps.bench import Bench, Experiment, Outcome, Point
from benchmarks.apps.systems import AHEAD
from parrot_mq.messages import RequestShape

ARCHITECT = (182, 706)
"""Tokens of prompt and output."""
CODER, REVIEWER, REVISER = 2991, 3717, 4175
"""Tokens of a prompt."""
CODES = (506, 822, 229, 447, 417, 196, 279, 444)
REVIEWS = (308, 331, 324, 278, 261, 238, 410, 394)
REVISIONS = (511, 636, 254, 404, 424, 191, 172, 448)
"""Tokens of the output for each file."""
FACTORS_AS_RUN = {"architect": (1.25, 1.25), "coder": (1.19, 1.54), "reviewer": (1.31, 1.31), "reviser": (1.30, 1.47)}
"""As run, by the tokens of LLaMA, prompts and outputs are longer than the log says: from the tokens that the artifact's
runs print for each stage, with four files and with eight, which is two equations for a stage. (Of the reviewers both
say the same: one factor for the two.)"""
OWN_SHARE = 0.025
"""Of a prompt, what differs between the files: its name and what to do with it."""
MIN_FILLER = 60
"""Tokens of role and task that every prompt begins with."""
NUM_ROUNDS = 3


async def run_multi_agent(bench: Bench, *, files: int, as_run: bool = False) -> Outcome:
    """One program on one engine."""
    return Outcome((await bench.driver.run("program", application(bench, files, as_run=as_run))).elapsed_s)


FILES = (4, 8, 12, 16)
FEW_BASELINES = ("latency-6144", "throughput", "throughput+cache")
"""At points that are not quick: of the two with a cache the throughput-centric one is the stronger."""
MULTI_AGENT = Experiment(
    name="multi-agent",
    profile="a100-13b",
    num_engines=1,
    shape=RequestShape(3700, 380, 3600),
    reference_tokens=7096,
    baselines=("latency-6144", "latency", "latency+cache", "throughput", "throughput+cache", "throughput+pages"),
    features=(
        "task_groups",
        "sibling_admission",
        "eager_prefill",
        "streamed_prefill",
        AHEAD,
        "prefix_caching",
        "shared_attention",
    ),
    points=(
        *(
            Point(f"files={files}", {"files": files}, quick=files == 4, baselines=None if files == 4 else FEW_BASELINES)
            for files in FILES
        ),
        *(
            Point(
                f"files={files}, as run",
                {"files": files, "as_run": True},
                baselines=("reference", "reference-throughput", "throughput", "throughput+cache"),
            )
            for files in FILES
        ),
        Point("files=4, float32", {"files": 4}, dtype="f32", baselines=("throughput+cache",), features=()),
    ),
    run=run_multi_agent,
)


@dataclasses.dataclass(frozen=True, slots=True)
class _Output:
    handle: Handle
    num_tokens: int


def application(bench: Bench, files: int, *, as_run: bool = False) -> Application:
    """Return the application for so many files. It is for whatever nobody reads in the end.

    ``as_run``: with the lengths of the reference's runs.
    """

    def longer(role: str, prompt: int, lengths: Sequence[int]) -> tuple[int, list[int]]:
        of_prompt, of_output = FACTORS_AS_RUN[role] if as_run else (1.0, 1.0)
        return round(of_prompt * prompt), [round(of_output * length) for length in lengths]

    def build(calls: Calls) -> Sequence[Handle]:
        unread: dict[int, Handle] = {}

        def stage(role: str, prompt: int, lengths: Sequence[int], read: Sequence[_Output]) -> list[_Output]:
            prompt, lengths = longer(role, prompt, lengths)
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

        prompt, (length,) = longer("architect", ARCHITECT[0], ARCHITECT[1:])
        architect = Function("architect", (bench.text(prompt, "architect"),), bench.scale.length(length))
        apis = _Output(calls.call(architect), length)
        codes = stage("coder", CODER, CODES, [apis])
        for _ in range(1 + NUM_ROUNDS):
            reviews = stage("reviewer", REVIEWER, REVIEWS, codes)
            read = [*codes[: len(CODES)], *reviews]
            if as_run:  # longer outputs: so many codes would fill the prompt that no review would be read
                read = [output for pair in zip(codes, reviews, strict=True) for output in pair]
            codes = stage("reviser", REVISER, REVISIONS, read)
        return list(unread.values())

    return build
