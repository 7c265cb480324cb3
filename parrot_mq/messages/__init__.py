"""Typed records that cross a process border: plain data, orjson on the wire, no behaviour of any process."""

from parrot_mq.messages.cost import CostModel, RequestShape
from parrot_mq.messages.engine import EngineRecord, EngineState
from parrot_mq.messages.form import RequestForm
from parrot_mq.messages.function import FunctionRecord, Segment, SegmentKind
from parrot_mq.messages.hint import PrefixHint
from parrot_mq.messages.lengths import LengthHistogram
from parrot_mq.messages.objective import LATENCY, THROUGHPUT, TPOT, TTFT, Deadline, Objective, ObjectiveKind, stricter
from parrot_mq.messages.request import Binding, RequestSpec, Transform, TransformKind
from parrot_mq.messages.sampling import SamplingParams
from parrot_mq.messages.standing import Aim, EngineAnswer, Placed, Refusal, Standing
from parrot_mq.messages.states import RequestState, SessionState, VariableState

__all__ = [
    "LATENCY",
    "THROUGHPUT",
    "TPOT",
    "TTFT",
    "Aim",
    "Binding",
    "CostModel",
    "Deadline",
    "EngineAnswer",
    "EngineRecord",
    "EngineState",
    "FunctionRecord",
    "LengthHistogram",
    "Objective",
    "ObjectiveKind",
    "Placed",
    "PrefixHint",
    "Refusal",
    "RequestForm",
    "RequestShape",
    "RequestSpec",
    "RequestState",
    "SamplingParams",
    "Segment",
    "SegmentKind",
    "SessionState",
    "Standing",
    "Transform",
    "TransformKind",
    "VariableState",
    "stricter",
]
