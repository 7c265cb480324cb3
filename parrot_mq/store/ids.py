"""Where random tokens come from: a port, so that a simulation can seed it."""

from __future__ import annotations

import random
import secrets
from typing import Protocol

_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"


class IdSource(Protocol):
    """Makes the random part of ids and fences."""

    def token(self) -> str:
        """Return a short lower-case token that is unique in practice (80 bits)."""


class SystemIds:
    """Tokens from the operating system's generator."""

    def token(self) -> str:
        """Return 16 characters of base 32."""
        bits = int.from_bytes(secrets.token_bytes(10), "big")
        return "".join(_ALPHABET[(bits >> shift) & 31] for shift in range(0, 80, 5))


class SeededIds:
    """Tokens from a seed: the same run makes the same ids."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def token(self) -> str:
        """Return 16 characters of base 32."""
        bits = self._random.getrandbits(80)
        return "".join(_ALPHABET[(bits >> shift) & 31] for shift in range(0, 80, 5))
