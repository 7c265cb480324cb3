"""The address of a Redis as it is shown to people."""

from __future__ import annotations

import re


def masked(url: str) -> str:
    """Return ``url`` as it may stand in a terminal, a log or an error: with ``***`` in place of its password."""
    return re.sub(r"(//[^:/@]*):.*@", r"\1:***@", url)
