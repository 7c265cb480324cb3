"""Where random tokens come from: a port, so that a simulation can seed it."""

from __future__ import annotations

import random
import secrets
from typing import Protocol

_ALPHABET = "0123456789abcdefghijklmnopqrstuv"
_PAIRS = tuple(low + high for high in _ALPHABET for low in _ALPHABET)
"""Two characters of base 32 for each value of ten bits."""
_SHIFTS = range(0, 80, 10)


class IdSource(Protocol):
    """Makes the random part of ids and fences."""

    def token(self) -> str:
        """Return a short lower-case token that is unique in practice (80 bits)."""


class SystemIds:
    """Tokens from the operating system's generator."""

    def token(self) -> str:
        """Return 16 characters of base 32."""
        return _text(int.from_bytes(secrets.token_bytes(10), "big"))


class SeededIds:
    """Tokens from a seed: the same run makes the same ids."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def token(self) -> str:
        """Return 16 characters of base 32."""
        return _text(self._random.getrandbits(80))


def _text(bits: int) -> str:
    return "".join([_PAIRS[bits >> shift & 1023] for shift in _SHIFTS])
