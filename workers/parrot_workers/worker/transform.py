"""From raw generated text to a variable's value."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

from parrot_mq.errors import TransformFailed
from parrot_mq.messages import Transform, TransformKind
from parrot_workers.worker.search import CPU_LIMIT_S, BadPattern, SearchLimit, shared_searcher

_EXCERPT = 120
MAX_CANDIDATES = 32
"""Brackets at which the beginning of the JSON is looked for: text made of brackets must not hold the worker up."""


def apply_transform(transform: Transform, text: str) -> str:
    """Return what ``transform`` makes of ``text``. Raises ``TransformFailed``, with an excerpt of the text.

    - STRIP: white space at both ends is removed.
    - JSON_FIELD: the first JSON object or list in the text (models like to talk around it), then the dotted path
      in it; numbers select from lists. A string comes out as it is, everything else as JSON.
    - REGEX: the first match of the pattern; group 1 where the pattern has one. May wait as long as ``search`` says.
    """
    if transform.kind is TransformKind.STRIP:
        return text.strip()
    if transform.kind is TransformKind.JSON_FIELD:
        return _json_field(transform.argument, text)
    return _regex(transform.argument, text)


def _json_field(path: str, text: str) -> str:
    value = _first_json(text)
    for name in filter(None, path.split(".")):
        try:
            value = value[int(name)] if isinstance(value, list) else value[name]
        except (KeyError, IndexError, ValueError, TypeError):
            raise TransformFailed(
                f"the output has no JSON field {path!r} (nothing at {name!r}): {_excerpt(text)}"
            ) from None
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _first_json(text: str) -> Any:
    decoder = json.JSONDecoder()
    for match in itertools.islice(re.finditer(r"[{\[]", text), MAX_CANDIDATES):
        try:
            return decoder.raw_decode(text, match.start())[0]
        except (json.JSONDecodeError, RecursionError):
            continue
    raise TransformFailed(
        f"the output holds no JSON object or list; ask for one in the prompt, or give more max_tokens: {_excerpt(text)}"
    )


def _regex(pattern: str, text: str) -> str:
    try:
        found = shared_searcher().search(pattern, text)
    except BadPattern as error:
        raise TransformFailed(
            f"the transform's pattern {_excerpt(pattern)} is no regular expression: {error}"
        ) from None
    except SearchLimit:
        raise TransformFailed(
            f"the pattern {_excerpt(pattern)} takes too long on the output, more than {CPU_LIMIT_S:g} s, or too much "
            "memory; write it without repetition inside repetition, such as (a+)+ or (.*)*"
        ) from None
    if found is None:
        raise TransformFailed(f"the pattern {_excerpt(pattern)} does not match the output: {_excerpt(text)}")
    return found


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= _EXCERPT else text[:_EXCERPT] + "…")
