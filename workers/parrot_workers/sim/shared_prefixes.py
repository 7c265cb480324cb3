"""How much of what a step reads is read for another sequence as well."""

from __future__ import annotations

from collections.abc import Iterable


class SharedPrefixes:
    """Counts, for the sequences that decode, who reads which block. A change costs the blocks of one sequence."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._readers: dict[bytes, int] = {}
        self._num_shared = 0

    @property
    def num_tokens(self) -> int:
        """Tokens of context that are read for another sequence as well: all readings of a block but one."""
        return self._num_shared * self._block_size

    def join(self, digests: Iterable[bytes]) -> None:
        """A sequence begins to read these blocks."""
        readers = self._readers
        for digest in digests:
            count = readers.get(digest, 0)
            readers[digest] = count + 1
            self._num_shared += count > 0

    def leave(self, digests: Iterable[bytes]) -> None:
        """A sequence that joined reads them no more."""
        readers = self._readers
        for digest in digests:
            count = readers[digest] - 1
            if count:
                readers[digest] = count
                self._num_shared -= 1
            else:
                del readers[digest]
