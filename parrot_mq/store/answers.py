"""Answers of scripts: ``["ok", ...]`` or ``["error", kind, culprit, message, retry_after_ms]``."""

from __future__ import annotations

from typing import Any

from parrot_mq.errors import SUBMIT_ERRORS, Fenced, NotClaimed, Overloaded, StoreError, SubmitError, UnknownVariable


def checked(answer: list[Any]) -> list[Any]:
    """Return what follows ``ok``; raise the typed error that the script named."""
    if answer[0] == "ok":
        return answer[1:]
    _, kind, culprit, message, *rest = answer
    if kind == "Overloaded":
        raise Overloaded(message, float(rest[0]) / 1000 if rest else 1.0)
    if kind == "Fenced":
        raise Fenced(message)
    if kind == "NotClaimed":
        raise NotClaimed(message)
    if kind in SUBMIT_ERRORS:
        cls: type[SubmitError] = SUBMIT_ERRORS[kind]
        raise cls(message, culprit)
    raise StoreError(f"{kind}: {message} ({culprit})")


def refusal(answer: str | list[Any]) -> StoreError | None:
    """Return the error in one answer of a script that gives many, None where it is none."""
    if isinstance(answer, str):
        return None
    try:
        checked(answer)
    except StoreError as error:
        return error
    return None


def unknown_variable(variable_id: str) -> UnknownVariable:
    """Return the error for an id that nobody has made."""
    return UnknownVariable(
        f"no variable has the id {variable_id}: it was never submitted (await var.published() before handing an id "
        "on), or its session has expired",
        variable_id,
    )
