"""Hints from the scheduler: prefixes to compute ahead and to keep. None is worth an error, let alone a request."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from parrot_mq.errors import InvalidRequest, StoreError
from parrot_mq.messages import FunctionRecord, PrefixHint, RequestSpec, SamplingParams
from parrot_mq.store.engine import EngineStore
from parrot_mq.store.reader import Reader
from parrot_mq.store.records import Control, InputValue
from parrot_workers.engine.port import PromptSegment, SequenceInput
from parrot_workers.worker.prompt import FunctionCache, prefix_salt, prompt_segments
from parrot_workers.worker.stepper import Stepper, monotonic_s
from parrot_workers.worker.streamed_prefill import StreamedPrefills

log = logging.getLogger(__name__)

KINDS = frozenset({"prefill", "retain", "release"})
MAX_PENDING = 256
"""Hints whose template and values are being read."""


class HintTaker:
    """Turns control messages into hints to the engine. Its tasks belong to ``group``, and outlive no error.

    ``identity`` returns the engine's ``model@tokenizer_digest``.
    """

    def __init__(
        self,
        group: asyncio.TaskGroup,
        stepper: Stepper,
        streamed: StreamedPrefills,
        functions: FunctionCache,
        identity: Callable[[], str],
    ) -> None:
        self._group = group
        self._stepper = stepper
        self._streamed = streamed
        self._functions = functions
        self._identity = identity
        self._pending: dict[tuple[str, str], object] = {}
        """The newest hint of each kind and key that is being read."""

    def obey(self, store: EngineStore, control: Control) -> None:
        """Act on a message of one of ``KINDS``; what is wrong with it is logged."""
        if control.kind == "release":
            for kind in ("prefill", "retain"):
                self._pending.pop((kind, control.text), None)
            self._streamed.end(control.text)
            self._stepper.release(control.text)
            self._stepper.abort(_prefill_id(control.text))
            return
        try:
            hint = PrefixHint.from_json(control.text)
        except ValueError as error:  # pydantic's are ValueErrors
            log.warning("a hint to %s cannot be read and is ignored: %s", control.kind, " ".join(str(error).split()))
            return
        if len(self._pending) >= MAX_PENDING:
            log.warning("hint %s to %s is ignored: too many are being read", hint.key, control.kind)
            return
        # Times count from now, however long it takes to read what the prefix is made of.
        token, now_s = object(), monotonic_s()
        self._pending[control.kind, hint.key] = token
        self._group.create_task(self._take(store, control.kind, hint, token, now_s))

    async def _take(self, store: EngineStore, kind: str, hint: PrefixHint, token: object, now_s: float) -> None:
        segments: tuple[PromptSegment, ...] | None = None
        try:
            segments = await self._segments(store, hint)
        except (InvalidRequest, StoreError) as error:
            log.warning("hint %s to %s is ignored: %s", hint.key, kind, error)
        if self._pending.get((kind, hint.key)) is not token:
            return  # released, or replaced, meanwhile
        del self._pending[kind, hint.key]
        if segments is None:
            return
        salt = prefix_salt(hint.tenant, share_prefixes=hint.share_prefixes)
        if segments and (kind == "retain" or hint.retain_s):
            self._stepper.retain(hint.key, segments, salt, now_s + hint.retain_s)
        if kind != "prefill":
            return
        if hint.follow:
            await self._streamed.follow(store.partition, hint.key, hint.follow, segments, salt)
        else:
            self._stepper.prefill(SequenceInput(_prefill_id(hint.key), segments, SamplingParams(), salt=salt))

    async def _segments(self, store: EngineStore, hint: PrefixHint) -> tuple[PromptSegment, ...]:
        """Read what the prefix is made of. Raises ``InvalidRequest`` if something of it is not there."""
        function = await self._functions.get(store, hint.tenant, hint.function)
        if function is None:
            raise InvalidRequest(f"tenant {hint.tenant!r} has no template {hint.function}")
        spec = _as_request(hint, function)
        ids = tuple({binding.variable: None for binding in hint.bindings.values() if binding.variable})
        inputs = {}
        for variable_id, record in zip(ids, await Reader(store.partition).variables(ids), strict=True):
            if record is None or record.value is None:
                raise InvalidRequest(f"variable {variable_id} has no value (any more)")
            inputs[variable_id] = InputValue(variable_id, record.value, "", record.token_ids, record.tokens_by)
        texts = {variable_id: value.text or "" for variable_id, value in inputs.items()}
        return prompt_segments(spec, function, inputs, texts, self._identity())


def _prefill_id(key: str) -> str:
    """Return the id that a prompt which is computed ahead has in the engine."""
    return f"prefill {key}"


def _as_request(hint: PrefixHint, function: FunctionRecord) -> RequestSpec:
    """The request whose whole prompt is the hint's prefix."""
    return RequestSpec(
        id=f"hint {hint.key}",
        call="",
        function=hint.function,
        function_name=function.name,
        prompt_end=hint.end,
        bindings=hint.bindings,
        output="",
        output_name="",
    )
