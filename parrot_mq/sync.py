"""The SDK for synchronous programs: the names of ``parrot_mq``, blocking. Write ``import parrot_mq.sync as P``.

    import parrot_mq.sync as P

    @P.semantic_function
    def summarise(text: P.Input, summary: P.Output = P.output(max_tokens=100)) -> None:
        '''Summarise in one sentence: {{text}}
        Summary:{{summary}}'''

    with P.connect("redis://localhost:6379") as client, client.session(tenant="acme"):
        print(summarise("...").get(perf=P.LATENCY))

The event loop runs in a thread of its own. Calls that follow one another within a millisecond go out together, and
every blocking method sends what is unsent. Any thread may use the variables; the ambient session is that of the thread
whose ``with`` block it is, other threads give ``session=``.
"""

from typing import TYPE_CHECKING, TypeAlias

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
from parrot_mq.sdk.blocking.function import BlockingFunction as SemanticFunction
from parrot_mq.sdk.blocking.function import Input, first, gather, map, semantic_function  # noqa: A004 - used as P.map
from parrot_mq.sdk.blocking.session import BlockingClient as Client
from parrot_mq.sdk.blocking.session import BlockingSession as Session
from parrot_mq.sdk.blocking.session import connect
from parrot_mq.sdk.blocking.variable import BlockingVariable as SemanticVariable
from parrot_mq.sdk.blocking.variable import BlockingVariables as VariableList
from parrot_mq.sdk.call import Call
from parrot_mq.sdk.explanation import Explanation
from parrot_mq.sdk.formatters import Formatter, default_formatter
from parrot_mq.sdk.machine import VirtualMachine
from parrot_mq.sdk.markers import OutputSpec, output
from parrot_mq.sdk.request_info import RequestInfo
from parrot_mq.sdk.template import TemplateWarning
from parrot_mq.sdk.transforms import json_field, regex, strip

if TYPE_CHECKING:
    Output: TypeAlias = SemanticVariable | OutputSpec
    """Annotates an output; a caller may pass a variable that was made before."""
else:
    Output = OutputSpec

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
