"""A Redis-backed pipeline that serves LLM applications made of semantic functions.

import parrot_mq as P

@P.semantic_function
def summarise(text: P.Input, summary: P.Output = P.output(max_tokens=100)) -> None:
    '''Summarise in one sentence: {{text}}
    Summary:{{summary}}'''

async with P.connect("redis://localhost:6379") as client, client.session(tenant="acme"):
    print(await summarise("...").get(perf=P.LATENCY))
"""

from parrot_mq.errors import (
    AlreadyProduced,
    AlreadySet,
    BadType,
    Cancelled,
    ConfigError,
    Conflict,
    CycleError,
    EngineFailed,
    Expired,
    Fenced,
    Forbidden,
    GetTimeout,
    InvalidRequest,
    NeverSet,
    Overloaded,
    ParrotError,
    SessionClosed,
    Step,
    StepError,
    StoreError,
    StoreUnavailable,
    StreamRestarted,
    SubmitError,
    TemplateError,
    TransformFailed,
    UnknownModel,
    UnknownSession,
    UnknownVariable,
    ValueTooLarge,
)
from parrot_mq.messages import LATENCY, THROUGHPUT, TPOT, TTFT, Deadline, Objective, SamplingParams, VariableState
from parrot_mq.sdk.call import Call
from parrot_mq.sdk.client import Client, connect
from parrot_mq.sdk.combine import first, gather, map  # noqa: A004 - used as P.map
from parrot_mq.sdk.explanation import Explanation
from parrot_mq.sdk.formatters import Formatter, default_formatter
from parrot_mq.sdk.function import SemanticFunction, semantic_function
from parrot_mq.sdk.machine import VirtualMachine
from parrot_mq.sdk.markers import Input, Output, output
from parrot_mq.sdk.request_info import RequestInfo
from parrot_mq.sdk.session import Session
from parrot_mq.sdk.template import TemplateWarning
from parrot_mq.sdk.transforms import json_field, regex, strip
from parrot_mq.sdk.variable import SemanticVariable, VariableList

__all__ = [
    "LATENCY",
    "THROUGHPUT",
    "TPOT",
    "TTFT",
    "AlreadyProduced",
    "AlreadySet",
    "BadType",
    "Call",
    "Cancelled",
    "Client",
    "ConfigError",
    "Conflict",
    "CycleError",
    "Deadline",
    "EngineFailed",
    "Expired",
    "Explanation",
    "Fenced",
    "Forbidden",
    "Formatter",
    "GetTimeout",
    "Input",
    "InvalidRequest",
    "NeverSet",
    "Objective",
    "Output",
    "Overloaded",
    "ParrotError",
    "RequestInfo",
    "SamplingParams",
    "SemanticFunction",
    "SemanticVariable",
    "Session",
    "SessionClosed",
    "Step",
    "StepError",
    "StoreError",
    "StoreUnavailable",
    "StreamRestarted",
    "SubmitError",
    "TemplateError",
    "TemplateWarning",
    "TransformFailed",
    "UnknownModel",
    "UnknownSession",
    "UnknownVariable",
    "ValueTooLarge",
    "VariableList",
    "VariableState",
    "VirtualMachine",
    "connect",
    "default_formatter",
    "first",
    "gather",
    "json_field",
    "map",
    "output",
    "regex",
    "semantic_function",
    "strip",
]
