"""Formatters: how Python objects become text in a prompt."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import orjson
import pydantic

Formatter: TypeAlias = Callable[[Any], str]
"""Takes an argument of a semantic function that is neither Input nor Output, returns its text in the prompt."""


def default_formatter(value: object) -> str:
    """Return ``value`` as a prompt shows it.

    Text as it is; dicts, lists, tuples, dataclasses and pydantic models as indented JSON (what JSON does not know as
    ``str`` gives it); everything else as ``str`` gives it.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, pydantic.BaseModel):
        value = value.model_dump(mode="json")
    is_record = dataclasses.is_dataclass(value) and not isinstance(value, type)
    if is_record or isinstance(value, dict | list | tuple):
        return orjson.dumps(value, default=str, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS).decode()
    return str(value)
