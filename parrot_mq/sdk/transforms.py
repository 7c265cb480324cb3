"""Transforms: how the generated text becomes the variable's value. They run where the text is generated."""

from __future__ import annotations

import re

from parrot_mq.errors import ConfigError
from parrot_mq.messages import Transform, TransformKind


def strip() -> Transform:
    """Return the transform that removes white space at both ends."""
    return Transform(TransformKind.STRIP)


def json_field(path: str) -> Transform:
    """Return the transform that parses the text as JSON and takes the field at a dotted ``path`` ("a.b", "items.0").

    A text is taken as it is, anything else as JSON. Text that is no JSON, or lacks the field, makes the variable a
    ``TransformFailed`` error. Raises ``ConfigError`` for a path with an empty part.
    """
    if not path or not all(path.split(".")):
        raise ConfigError(f"json_field({path!r}): a path is names or indices joined by dots, like 'answer.items.0'")
    return Transform(TransformKind.JSON_FIELD, path)


def regex(pattern: str) -> Transform:
    """Return the transform that searches the text for ``pattern`` and takes group 1, or the match if it has no group.

    Text without a match makes the variable a ``TransformFailed`` error, and so does a search that takes longer than
    half a second, as repetition inside repetition may ("(a+)+$"). Raises ``ConfigError`` for a bad pattern.
    """
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ConfigError(f"regex({pattern!r}): {error}") from None
    return Transform(TransformKind.REGEX, pattern)
