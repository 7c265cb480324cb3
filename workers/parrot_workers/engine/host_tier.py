"""Host memory behind the KV cache: content of blocks that were given away, to be found by its hash.

Only the books are here, and the list of copies that make them true (``kv_transfer`` carries it out).
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence


@dataclasses.dataclass(frozen=True, slots=True)
class Transfers:
    """Copies to be made before the next step: all ``stores`` (block, slot) first, then all ``loads`` (slot, block).

    A load may read what a store has just written, and write a block that a store has just read. No slot is stored to
    twice, no block is loaded to twice, and no slot that a load reads is stored to for other content.
    """

    stores: tuple[tuple[int, int], ...] = ()
    loads: tuple[tuple[int, int], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.stores or self.loads)


@dataclasses.dataclass(frozen=True, slots=True)
class ReloadCost:
    """Predicted times in milliseconds: copying blocks back from host memory against computing them again.

    As it stands by default a copy is always worth it.
    """

    fixed_ms: float = 0.0
    """Of a step that copies anything."""
    copy_block_ms: float = 0.0
    compute_block_ms: float = 1.0

    @property
    def can_pay(self) -> bool:
        """Whether a prefix could be so long that copying it is the cheaper way."""
        return self.copy_block_ms < self.compute_block_ms

    def worthwhile(self, in_host: Sequence[bool]) -> int:
        """Return how many leading blocks of a cached prefix to use; the others are computed again.

        ``in_host[i]`` says whether block i must be copied. Using none of what must be copied means to stop before the
        first of them, whatever the device holds behind it. Of equally cheap answers the longest is given.
        """
        best, best_ms = 0, len(in_host) * self.compute_block_ms
        copied = 0
        for used, must_copy in enumerate(in_host, 1):
            copied += must_copy
            cost_ms = (len(in_host) - used) * self.compute_block_ms + copied * self.copy_block_ms
            if copied:
                cost_ms += self.fixed_ms
            if cost_ms <= best_ms:
                best, best_ms = used, cost_ms
        return best


class HostTier:
    """``num_slots`` slots of one block each, given to the content that was looked for or given away last."""

    def __init__(self, num_slots: int, cost: ReloadCost | None = None) -> None:
        if num_slots < 1:
            raise ValueError(f"a host tier needs at least one slot, got {num_slots}")
        self.num_slots = num_slots
        self.cost = cost or ReloadCost()
        self.num_loaded_blocks = 0
        """Blocks that came back, in all."""
        self._slots: OrderedDict[bytes, int] = OrderedDict()
        """Hash -> slot, the least recently used first."""
        self._unused = list(range(num_slots - 1, -1, -1))
        self._stores: dict[int, int] = {}
        """Slot -> block, to be copied."""
        self._loads: dict[int, int] = {}
        """Block -> slot, to be copied."""
        self._pinned: set[int] = set()
        """Slots that this round's loads read, or may have read: they keep their content until it is over."""

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._slots

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def slots(self) -> Mapping[bytes, int]:
        """Where each content is, once the transfers are made."""
        return self._slots

    @property
    def loading(self) -> Collection[int]:
        """Blocks that content is still to be copied into."""
        return self._loads.keys()

    def store(self, digest: bytes, block: int) -> None:
        """Keep the content of ``block``, which is given away, if it is not here and there is a slot for it.

        Not where copies never pay: nobody would come for it.
        """
        if not self.cost.can_pay:
            return
        if digest in self._slots:
            self._slots.move_to_end(digest)
            return
        if self._unused:
            slot = self._unused.pop()
        else:
            oldest = next(iter(self._slots))
            slot = self._slots[oldest]
            if slot in self._pinned:  # then so is nearly all: what is read was moved to the end
                return
            del self._slots[oldest]
        self._slots[digest] = slot
        self._stores[slot] = block

    def pin(self, digest: bytes) -> None:
        """Keep ``digest`` where it is until the round's transfers are taken."""
        self._pinned.add(self._slots[digest])
        self._slots.move_to_end(digest)

    def load(self, digest: bytes, block: int) -> None:
        """Have the content of ``digest``, which is pinned, copied into ``block``."""
        slot = self._slots[digest]
        assert slot in self._pinned, f"slot {slot} is read without being pinned"
        self._loads[block] = slot

    def cancel_load(self, block: int) -> None:
        """Copy nothing into ``block``: it was given away before its content came."""
        self._loads.pop(block, None)

    def take_transfers(self) -> Transfers:
        """Return the copies of this round and begin the next."""
        transfers = Transfers(
            tuple((block, slot) for slot, block in self._stores.items()),
            tuple((slot, block) for block, slot in self._loads.items()),
        )
        self.num_loaded_blocks += len(self._loads)
        self._stores.clear()
        self._loads.clear()
        self._pinned.clear()
        return transfers

    def forget(self) -> None:
        """Empty the tier, copies that are still to be made included."""
        self._slots.clear()
        self._unused = list(range(self.num_slots - 1, -1, -1))
        self._stores.clear()
        self._loads.clear()
        self._pinned.clear()

    def check(self) -> None:
        """Raise AssertionError unless every slot is used once or unused."""
        used = sorted([*self._slots.values(), *self._unused])
        assert used == list(range(self.num_slots)), "a host slot is lost, or used twice"
