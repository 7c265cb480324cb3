"""What the requests of one output have in common, encoded once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import orjson

from parrot_mq.messages.function import FunctionRecord
from parrot_mq.messages.request import Transform
from parrot_mq.messages.sampling import SamplingParams


class RequestForm:
    """Fills in what is new in a request: ``fill`` gives the text that ``RequestSpec.to_json`` gives, several times
    faster.

    ``function`` is the template, ``names`` the placeholders of the prompt. The other arguments are those of
    ``RequestSpec``.
    """

    __slots__ = ("_common", "_ending", "_names", "_output", "function", "model", "output_name")

    def __init__(
        self,
        function: FunctionRecord,
        prompt_end: int,
        names: Sequence[str],
        output_name: str,
        model: str,
        sampling: SamplingParams,
        transform: Transform | None,
        priority: int,
        share_prefixes: bool,
    ) -> None:
        self.function = function
        self.model = model
        self.output_name = output_name
        common = {"function": function.digest, "function_name": function.name, "prompt_end": prompt_end}
        self._common = _members(common)
        self._names = [(name, f"{_json(name)}:") for name in names]
        output: dict[str, object] = {"output_name": output_name}
        if model:
            output["model"] = model
        if differing := sampling.to_dict():
            output["sampling"] = differing
        if transform:
            output["transform"] = [transform.kind.value, transform.argument]
        self._output = _members(output)
        ending: dict[str, object] = {"priority": priority} if priority else {}
        if share_prefixes:
            ending["share_prefixes"] = True
        self._ending = f",{_members(ending)}}}" if ending else "}"

    def fill(
        self, request_id: str, call_id: str, bindings: Mapping[str, str], output_id: str, raw_inputs: Sequence[str] = ()
    ) -> str:
        """Return the request as one line of JSON. ``bindings`` are encoded (``bound_variable``, ``bound_text``); the
        ids of the request and its call are made here, so that they need no escapes.
        """
        bound = ",".join([quoted + bindings[name] for name, quoted in self._names])
        raw = f',"raw_inputs":{_json(raw_inputs)}' if raw_inputs else ""
        return (
            f'{{"id":"{request_id}","call":"{call_id}",{self._common},"bindings":{{{bound}}},'
            f'"output":{_json(output_id)},{self._output}{raw}{self._ending}'
        )


def bound_variable(variable_id: str) -> str:
    """Return the encoded binding of a variable."""
    return f'{{"variable":{_json(variable_id)}}}'


def bound_text(text: str) -> str:
    """Return the encoded binding of a text."""
    return f'{{"text":{_json(text)}}}'


def _json(value: object) -> str:
    return orjson.dumps(value).decode()


def _members(data: Mapping[str, object]) -> str:
    """Return the members of a JSON object, without its braces."""
    return _json(data)[1:-1]
