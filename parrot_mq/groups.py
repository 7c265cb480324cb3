"""What happened, out of the exception groups that task groups put around it."""

from __future__ import annotations


def only(error: BaseException) -> BaseException:
    """Return the one exception inside ``error``; a group of several stays as it is."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
