"""What is in a block, in 16 bytes: a chained hash of the tokens up to its end, begun at the tenant's salt."""

from __future__ import annotations

import hashlib
from array import array


def extend_hashes(hashes: list[bytes], token_ids: list[int], salt: str, num_blocks: int, block_size: int) -> None:
    """Append to ``hashes`` what it lacks of the first ``num_blocks`` blocks of ``token_ids``, all of them full."""
    for index in range(len(hashes), num_blocks):
        parent = hashes[-1] if hashes else _root(salt)
        ids = array("q", token_ids[index * block_size : (index + 1) * block_size])
        assert len(ids) == block_size, f"block {index} is not full yet: it has no content to be found by"
        # The parent is the key, a separate input of BLAKE2: no ids can imitate it.
        hashes.append(hashlib.blake2b(ids.tobytes(), key=parent, digest_size=16).digest())


def _root(salt: str) -> bytes:
    return hashlib.blake2b(salt.encode(), digest_size=16, person=b"tenant salt").digest()
