"""Who is compared: this system, whole and with one feature off, and clients that orchestrate request by request.

All run the same pipeline (SDK, Redis, scheduler, engines) with the same engines and tokens. A baseline's client knows
nothing of this system, so every feature of the scheduler is off for it, and its engines either bound the time per token
(latency-centric: few tokens at once) or do not (throughput-centric).
"""

from __future__ import annotations

import dataclasses

from parrot_mq.messages import CostModel, RequestShape
from parrot_mq.settings import SchedulerSettings

OURS = "parrot_mq"
SWITCHES = tuple(field.name for field in dataclasses.fields(SchedulerSettings) if field.type == "bool")
"""The scheduler's features, each of which can be off."""
PREFIX_CACHING, SHARED_ATTENTION = "prefix_caching", "shared_attention"
ENGINE_FEATURES = (PREFIX_CACHING, SHARED_ATTENTION)
AHEAD = "eager_prefill+streamed_prefill"
"""Each does what the other does where an input that is being generated comes right behind a known beginning: what they
save shows with both off."""
LATENCY_TPOT_MS = 40.0
"""What a latency-centric engine keeps the time per token under (Parrot, OSDI'24, section 8.2)."""


@dataclasses.dataclass(frozen=True, slots=True)
class System:
    """``client_side``: every call is awaited by the client. ``latency_centric``: its engines bound the time per token.

    ``max_running_tokens``, if it is not 0, is what a latency-centric engine runs at once in place of the cost model's
    bound. ``prefix_caching``: engines keep and share computed prefixes; ``shared_attention``: attention reads a shared
    prefix once, not once for each request. ``feature_off``: what is off of ours (``ours``).
    ``is_reference``: it runs on the engine that the reference compared itself with, not on ours.
    """

    name: str
    client_side: bool = True
    latency_centric: bool = False
    prefix_caching: bool = False
    shared_attention: bool = True
    feature_off: str = ""
    max_running_tokens: int = 0
    is_reference: bool = False

    @property
    def scheduler(self) -> SchedulerSettings:
        """The switches it runs with: for a baseline all are off."""
        off = SWITCHES if self.client_side else [name for name in self.feature_off.split("+") if name in SWITCHES]
        return SchedulerSettings(**dict.fromkeys(off, False))

    @property
    def label(self) -> str:
        return f"{self.name} -{self.feature_off}" if self.feature_off else self.name


def ours(feature_off: str = "") -> System:
    """Return this system, whole or with one feature off; or with several, whose names "+" joins."""
    off = feature_off.split("+") if feature_off else []
    if unknown := set(off) - {*SWITCHES, *ENGINE_FEATURES}:
        raise ValueError(f"{', '.join(unknown)!r} is no feature; there are {', '.join((*SWITCHES, *ENGINE_FEATURES))}")
    return System(
        OURS,
        client_side=False,
        prefix_caching=PREFIX_CACHING not in off,
        shared_attention=SHARED_ATTENTION not in off,
        feature_off=feature_off,
    )


BASELINES = (
    System("latency", latency_centric=True),
    System("latency+cache", latency_centric=True, prefix_caching=True),
    System("throughput"),
    System("throughput+cache", prefix_caching=True),
)
PAGES = System("throughput+pages", prefix_caching=True, shared_attention=False)
"""As the reference's strongest baseline shares prompts: pages are kept once, attention reads them for every request."""
REFERENCE_LATENCY = System("latency-6144", latency_centric=True, max_running_tokens=6144)
"""A latency-centric engine as the reference defined it: 6144 tokens at once, which kept its TPOT under about 40 ms
(13B, A100), without sharing. Its runs had limits of 4096 to 7096."""
REFERENCE_BASELINES = (
    System("reference", latency_centric=True, shared_attention=False, is_reference=True),
    System("reference-throughput", shared_attention=False, is_reference=True),
)
"""What the reference's ratios were measured against: clients of the vLLM of 2023, which takes more for each sequence of
a step, has no kernel for shared prefixes and no cache of them, and prefills and decodes in turns. Held to
``Experiment.reference_tokens``, or to its memory alone."""
REFERENCE_PROFILES = {"a100-13b": "a100-13b-vllm"}
"""That engine in place of ours."""
REFERENCE_BATCH_TOKENS = 8000
"""Tokens of prompts that it prefills at once (--max-num-batched-tokens of the artifact)."""
SYSTEMS = {
    system.label: system
    for system in (
        *(ours(), *BASELINES, PAGES, REFERENCE_LATENCY, *REFERENCE_BASELINES),
        *map(ours, (*SWITCHES, *ENGINE_FEATURES, AHEAD)),
    )
}


def latency_seqs(cost: CostModel, shape: RequestShape, *, prefix_caching: bool) -> int:
    """Return how many requests of ``shape`` a latency-centric engine runs at once: at least one.

    So many that the time per token stays under ``LATENCY_TPOT_MS`` by the cost model, the prefills of those that take
    the places of others counted. What of ``shape`` is cached counts where the engine has a cache.
    """
    if not prefix_caching:
        shape = dataclasses.replace(shape, cached_tokens=0)
    return max(1, int(cost.capacity_seqs(LATENCY_TPOT_MS, shape)))
