"""Shared prefixes as trees, and what a GPU must read and compute for a step of decoding them, at least.

A tree is written as in FastTree (Pan et al., MLSys 2025): nodes a level / keys a node, so ``1,64/4096,256`` is 64
requests of 4096 common keys and 256 of their own. Every leaf is a request.
"""

from __future__ import annotations

import dataclasses
import itertools

from parrot_kernels.gpu.sharing_cost import AttentionShape

BYTE_BOUND_ROWS = 200
"""Rows (requests of a prefix x query heads of a KV head) up to which an H200 is bound by reading, not by products."""


@dataclasses.dataclass(frozen=True, slots=True)
class Tree:
    """``widths[i]`` nodes of ``lengths[i]`` keys on level i; each width divides the next."""

    widths: tuple[int, ...]
    lengths: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> Tree:
        """Return the tree of a text like ``1,64/4096,256``. Raises ValueError."""
        widths, lengths = (tuple(int(number) for number in part.split(",")) for part in text.split("/"))
        if len(widths) != len(lengths) or any(b % a for a, b in itertools.pairwise(widths)):
            raise ValueError(f"{text} is no tree: as many lengths as widths, each width a divisor of the next")
        return cls(widths, lengths)

    def __str__(self) -> str:
        return "/".join(",".join(map(str, numbers)) for numbers in (self.widths, self.lengths))

    @property
    def num_requests(self) -> int:
        return self.widths[-1]

    @property
    def context(self) -> int:
        """Keys that each request sees."""
        return sum(self.lengths)

    @property
    def num_keys(self) -> int:
        """Different keys."""
        return sum(width * length for width, length in zip(self.widths, self.lengths, strict=True))

    @property
    def prefix_keys(self) -> int:
        """Keys that a request shares with any other."""
        return sum(length for width, length in zip(self.widths, self.lengths, strict=True) if width < self.num_requests)

    @property
    def is_shared(self) -> bool:
        return self.prefix_keys > 0

    @property
    def largest_group(self) -> int:
        """The most requests that share a key."""
        return self.num_requests // self.widths[0]


@dataclasses.dataclass(frozen=True, slots=True)
class Floor:
    """The least that attention of ``tree`` takes: keys and values read once, by requests alone, and the products."""

    tree: Tree
    shape: AttentionShape

    @property
    def shared_bytes(self) -> int:
        return self.tree.num_keys * self.shape.bytes_per_key

    @property
    def alone_bytes(self) -> int:
        return self.tree.num_requests * self.tree.context * self.shape.bytes_per_key

    @property
    def flops(self) -> int:
        return self.shape.flops(self.tree.num_requests * self.shape.fold, self.tree.context)

    @property
    def is_byte_bound(self) -> bool:
        """Whether the bytes and not the products are what takes the time, even if each key is read once."""
        return self.tree.largest_group * self.shape.fold <= BYTE_BOUND_ROWS

    def seconds(self, bytes_per_s: float) -> float:
        """Return the time to read every key and value once."""
        return self.shared_bytes / bytes_per_s


FLOOR_TREES = ("1,8/4096,256", "1,64/4096,256", "1,64/8192,256", "1,256/8192,128")
FASTTREE_TREES = ("1,256/256,32", "1,10/4000,400", "1,4,16,512/1024,256,128,32")
NO_SHARING_TREES = ("256/4096",)
FLOOR_HEADS = ((32, 8),)
FASTTREE_HEADS = ((16, 1), (32, 8), (32, 32))
HEAD_DIM = 128


def cases() -> list[tuple[Tree, AttentionShape]]:
    """Return what is measured: the trees of the floor's table, FastTree's, and one where nothing is shared."""
    groups = ((FLOOR_TREES, FLOOR_HEADS), ((*FASTTREE_TREES, *NO_SHARING_TREES), FASTTREE_HEADS))
    return [
        (Tree.parse(text), AttentionShape(heads, kv_heads, HEAD_DIM))
        for texts, head_counts in groups
        for heads, kv_heads in head_counts
        for text in texts
    ]


def toy_cases() -> list[tuple[Tree, AttentionShape]]:
    """Return one of each kind, small enough for the interpreter."""
    return [
        (Tree.parse("1,3/64,32"), AttentionShape(4, 1, 64)),
        (Tree.parse("1,2,4/32,16,16"), AttentionShape(2, 2, 64)),
        (Tree.parse("2/48"), AttentionShape(4, 1, 64)),
    ]
