"""Scheduling policy: decisions from what is known, without I/O and without a clock."""

from parrot_mq.scheduler.policy.fleet import Fleet
from parrot_mq.scheduler.policy.flights import Flights, call_digest, flight_digest
from parrot_mq.scheduler.policy.lengths import OutputLengths
from parrot_mq.scheduler.policy.load import EngineLoad
from parrot_mq.scheduler.policy.objective import deduce, upstream
from parrot_mq.scheduler.policy.order import ReadyQueue, order_key_ms
from parrot_mq.scheduler.policy.place import Placement, Reason
from parrot_mq.scheduler.policy.policy import Plan, decide, plan_json
from parrot_mq.scheduler.policy.prefix import Template, boundaries, prompt_tokens
from parrot_mq.scheduler.policy.refusal import refusal
from parrot_mq.scheduler.policy.retention import Retention

__all__ = [
    "EngineLoad",
    "Fleet",
    "Flights",
    "OutputLengths",
    "Placement",
    "Plan",
    "ReadyQueue",
    "Reason",
    "Retention",
    "Template",
    "boundaries",
    "call_digest",
    "decide",
    "deduce",
    "flight_digest",
    "order_key_ms",
    "plan_json",
    "prompt_tokens",
    "refusal",
    "upstream",
]
