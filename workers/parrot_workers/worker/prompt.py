"""From a claimed request to the sequence an engine runs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from parrot_mq.errors import InvalidRequest
from parrot_mq.messages import FunctionRecord, RequestSpec, SegmentKind
from parrot_mq.store.engine import EngineStore
from parrot_mq.store.records import Claim, InputValue
from parrot_workers.engine.port import PromptSegment

NUM_CACHED_FUNCTIONS = 1024
SHARED_SALT = ""
"""Of all tenants who share their prefixes. No tenant has it of his own, whatever his name."""


class FunctionCache:
    """The templates used last, by tenant and digest. Templates never change, so nothing is ever stale."""

    def __init__(self, capacity: int = NUM_CACHED_FUNCTIONS) -> None:
        self._capacity = capacity
        self._functions: OrderedDict[tuple[str, str], FunctionRecord] = OrderedDict()

    def peek(self, tenant: str, digest: str) -> FunctionRecord | None:
        """Return the template if it is here."""
        function = self._functions.get((tenant, digest))
        if function is not None:
            self._functions.move_to_end((tenant, digest))
        return function

    async def get(self, store: EngineStore, tenant: str, digest: str) -> FunctionRecord | None:
        """Return the template, read from ``store`` if it is not here; None if nobody knows it."""
        function = self.peek(tenant, digest)
        if function is None:
            function = await store.function(tenant, digest)
            if function is not None:
                self._functions[tenant, digest] = function
                while len(self._functions) > self._capacity:
                    self._functions.popitem(last=False)
        return function


def prefix_salt(tenant: str, *, share_prefixes: bool) -> str:
    """Return what separates a request's blocks from others' in the cache: its tenant, unless he shares."""
    return SHARED_SALT if share_prefixes else f"tenant {tenant}"


async def fetch_inputs(store: EngineStore, claim: Claim) -> dict[str, str]:
    """Return the text of every input by variable id, large ones read by their reference.

    Raises ``InvalidRequest`` for a value that has been deleted.
    """
    texts = {}
    for value in claim.inputs:
        text = value.text if value.text is not None else await store.fetch(value.reference)
        if text is None:
            raise InvalidRequest(
                f"the value of variable {value.id}, an input of request {claim.request}, is gone: "
                "its session was deleted or has expired"
            )
        texts[value.id] = text
    return texts


def prompt_segments(
    spec: RequestSpec,
    function: FunctionRecord,
    inputs: Mapping[str, InputValue],
    texts: Mapping[str, str],
    identity: str,
) -> tuple[PromptSegment, ...]:
    """Return the prompt of ``spec``: the template's segments with every placeholder filled.

    ``inputs`` and ``texts`` are by variable id. Token ids of a value are passed on only if ``identity`` (this
    engine's model and tokenizer) generated them. Raises ``InvalidRequest`` for a placeholder without a value.
    """
    segments = []
    for segment in function.segments[: spec.prompt_end]:
        if segment.kind is SegmentKind.CONSTANT:
            segments.append(PromptSegment(segment.text))
            continue
        binding = spec.bindings.get(segment.text)
        if binding is None:
            raise InvalidRequest(f"placeholder {segment.text!r} of {spec.function_name} is bound to nothing")
        if binding.text is not None:
            segments.append(PromptSegment(binding.text, is_value=True))
            continue
        value = inputs.get(binding.variable)
        if value is None:
            raise InvalidRequest(
                f"placeholder {segment.text!r} of {spec.function_name} is bound to variable {binding.variable}, "
                f"which is no input of request {spec.id}; submit the call again"
            )
        known = bool(identity) and value.tokens_by == identity and bool(value.token_ids)
        segments.append(
            PromptSegment(texts[value.id], is_value=True, token_ids=value.token_ids if known else None),
        )
    return tuple(segments)
