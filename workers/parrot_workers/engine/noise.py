"""What makes the random numbers of a draw: they depend on (seed, output position, token id) alone."""

from __future__ import annotations

import hashlib


def noise_key(seed: int, position: int) -> tuple[int, int]:
    """Return the two signed 32-bit numbers that a row's noise is made of (``Backend.sample``)."""
    digest = hashlib.blake2b(
        seed.to_bytes(8, "little") + position.to_bytes(8, "little"), digest_size=8, person=b"sampling"
    ).digest()
    return int.from_bytes(digest[:4], "little", signed=True), int.from_bytes(digest[4:], "little", signed=True)
