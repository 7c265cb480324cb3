"""Which keys each query row of a step sees, cut into pieces so that shared prefixes are read once.

A *piece* is a range of keys in some blocks, and the query rows that see them. Without sharing each sequence is one
piece. Sequences whose block tables start with the same blocks form a *prefix group*: the common blocks are a piece of
all their rows, what follows is a piece of each, and groups nest. A row with several pieces gets a *part* (output and
log-sum-exp) from each, merged in the order of the keys.
"""

from __future__ import annotations

import array
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from parrot_kernels.errors import KernelInputError
from parrot_kernels.query_group import QueryGroup, grouped

BLOCK_SIZE = 16
"""Keys of a cache block, for all kernels."""
MIN_SHARED_KEYS = 64
"""A common prefix shorter than this is not worth parts and a merge."""
MAX_SHARED_QUERY = 16
"""Sequences with more new tokens than this read their keys for many rows anyway: they join no group."""
SPLIT_KEYS = 1024
"""Longer pieces are cut at multiples of this, so that one long context occupies several threads."""


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """Keys ``first_key`` (in the sequence) to ``first_key + num_keys`` in ``blocks``, seen by query rows ``rows``.

    The rows are those of ``num_sequences`` sequences. A piece of one is the last that its rows see.
    """

    first_key: int
    num_keys: int
    blocks: Sequence[int]
    rows: Sequence[int]
    num_sequences: int

    @property
    def is_prefill(self) -> bool:
        """Whether the rows are many new tokens of one sequence, so that each sees other keys than the next."""
        return self.num_sequences == 1 and len(self.rows) > MAX_SHARED_QUERY

    def split(self, num_keys: int) -> Iterator[Piece]:
        """Yield the pieces of at most ``num_keys`` (whole blocks) that make up this one."""
        for start in range(0, self.num_keys, num_keys):
            count = min(num_keys, self.num_keys - start)
            first_block = start // BLOCK_SIZE
            blocks = self.blocks[first_block : first_block - (-count // BLOCK_SIZE)]
            yield Piece(self.first_key + start, count, blocks, self.rows, self.num_sequences)


Pays = Callable[[int, int, int], bool]
"""Whether ``num_keys`` common keys, seen by ``num_rows`` query rows, are better read once than by each of
``num_readers`` pieces, which follow them: ``pays(num_keys, num_rows, num_readers)``."""


def pays_if_long(num_keys: int, num_rows: int, num_readers: int) -> bool:
    """Decide for a CPU, where reading is what costs and a part is cheap."""
    return num_keys >= MIN_SHARED_KEYS


class AttentionPlan:
    """The attention of one step: made once, used by every layer.

    ``query_lens[i]`` new tokens, the last of ``context_lens[i]`` in all, whose keys lie in the blocks
    ``block_tables[i]``; the flat batch holds the sequences' new tokens one after the other. With ``share`` false
    every sequence is computed by itself, so that a row's result does not depend on its neighbours to the last bit.
    A batch padded to ``num_rows`` rows has rows behind those of the sequences that see no key: their output is 0.
    The block tables are read while the step runs, so until then they must stay as they are.
    """

    def __init__(
        self,
        query_lens: Sequence[int],
        context_lens: Sequence[int],
        block_tables: Sequence[Sequence[int]],
        *,
        num_rows: int | None = None,
        share: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        if not len(query_lens) == len(context_lens) == len(block_tables):
            raise KernelInputError("query_lens, context_lens and block_tables differ in length")
        for query_len, context_len, table in zip(query_lens, context_lens, block_tables, strict=True):
            if not 1 <= query_len <= context_len:
                raise KernelInputError(f"{query_len} new tokens of {context_len}: want at least 1, at most all")
            if len(table) * BLOCK_SIZE < context_len:
                raise KernelInputError(f"{len(table)} blocks do not hold a context of {context_len}")
        self.query_lens = query_lens
        self.context_lens = context_lens
        self.block_tables = block_tables
        self.device = torch.device(device)
        self.first_rows: list[int] = []
        """Of each sequence, in the flat batch."""
        total = 0
        for length in query_lens:
            self.first_rows.append(total)
            total += length
        self.num_tokens = total if num_rows is None else num_rows
        """Rows of the flat batch, padding included."""
        if self.num_tokens < total:
            raise KernelInputError(f"{total} new tokens do not fit {num_rows} rows")
        self.is_padded = self.num_tokens > total
        self.share = share
        self.native: object = None
        """What a compiled backend keeps with the plan."""

    # Most of what follows is made when it is asked for: a step on a GPU that only moves its sequences on needs neither
    # the tables nor the pieces, and making them takes longer than all the rest.

    @functools.cached_property
    def flat_tables(self) -> array.array[int]:
        """The block tables, one after the other."""
        return array.array("i", itertools.chain.from_iterable(self.block_tables))

    @functools.cached_property
    def num_blocks(self) -> int:
        """The cache must have at least as many blocks. Raises ``KernelInputError`` if a block is negative."""
        lowest, highest = _bounds(self.flat_tables)
        if lowest < 0:
            raise KernelInputError("a negative block in a block table")
        return highest + 1

    @functools.cached_property
    def groups(self) -> list[QueryGroup]:
        """The sequences as padded batches, for torch."""
        members = grouped(self.query_lens, self.context_lens)
        return [QueryGroup(self, group, BLOCK_SIZE) for group in members]

    @functools.cached_property
    def arrays(self) -> PlanArrays:
        """The pieces as flat int32 tensors, for compiled kernels."""
        return PlanArrays.of(self)

    @functools.cached_property
    def positions(self) -> list[int]:
        """Of each row in its sequence; 0 for padding rows."""
        positions: list[int] = []
        for query_len, context_len in zip(self.query_lens, self.context_lens, strict=True):
            positions += range(context_len - query_len, context_len)
        return positions + [0] * (self.num_tokens - len(positions))

    @functools.cached_property
    def pieces(self) -> list[Piece]:
        """The pieces as a CPU takes them, the most work first."""
        pieces: list[Piece] = []
        for piece in self.cut(pays_if_long):
            pieces += [piece] if piece.is_prefill else piece.split(SPLIT_KEYS)
        # The longest first, so that no thread starts one at the end; the sort is stable.
        return sorted(pieces, key=lambda piece: -piece.num_keys * len(piece.rows))

    def cut(self, pays: Pays) -> list[Piece]:
        """Return the pieces, of any length, sharing where it ``pays`` (and nowhere if ``share`` is false)."""
        pieces: list[Piece] = []
        short = [i for i, length in enumerate(self.query_lens) if length <= MAX_SHARED_QUERY]
        alone = [i for i, length in enumerate(self.query_lens) if length > MAX_SHARED_QUERY]
        pieces += [self._piece([i], 0, self.context_lens[i]) for i in alone]
        for group in self._grouped(short, 0) if self.share else [[i] for i in short]:
            pieces += self._walk(group, 0, 0, pays)
        return pieces

    def _walk(self, members: list[int], covered: int, depth: int, pays: Pays) -> Iterator[Piece]:
        """Pieces of ``members``, who share their first ``depth`` blocks, of which ``covered`` are in pieces already."""
        if len(members) == 1:
            context_len = self.context_lens[members[0]]
            if covered * BLOCK_SIZE < context_len:
                yield self._piece(members, covered, context_len)
            return
        tables = [self._full_blocks(i) for i in members]
        lowest, highest = min(tables), max(tables)  # what these two have in common, all have
        while depth < len(lowest) and lowest[depth] == highest[depth]:
            depth += 1
        groups = self._grouped(members, depth)
        num_rows = sum(self.query_lens[i] for i in members)
        if depth > covered and pays((depth - covered) * BLOCK_SIZE, num_rows, len(groups)):
            yield self._piece(members, covered, depth * BLOCK_SIZE)
            covered = depth
        for group in groups:
            yield from self._walk(group, covered, depth, pays)

    def _grouped(self, members: list[int], depth: int) -> list[list[int]]:
        groups: dict[object, list[int]] = {}
        for i in members:
            is_full = depth < self.context_lens[i] // BLOCK_SIZE
            groups.setdefault(self.block_tables[i][depth] if is_full else ("alone", i), []).append(i)
        return list(groups.values())

    def _full_blocks(self, member: int) -> list[int]:
        return list(self.block_tables[member][: self.context_lens[member] // BLOCK_SIZE])

    def _piece(self, members: list[int], first_block: int, end: int) -> Piece:
        blocks = self.block_tables[members[0]][first_block : -(-end // BLOCK_SIZE)]
        rows = [row for i in members for row in range(self.first_rows[i], self.first_rows[i] + self.query_lens[i])]
        return Piece(first_block * BLOCK_SIZE, end - first_block * BLOCK_SIZE, blocks, rows, len(members))


def _bounds(blocks: array.array[int]) -> tuple[int, int]:
    """Return the lowest and the highest of ``blocks``; 0 and -1 if there are none."""
    if len(blocks) < 64:  # a call of torch costs more
        return min(blocks, default=0), max(blocks, default=-1)
    lowest, highest = torch.frombuffer(blocks, dtype=torch.int32).aminmax()
    return int(lowest), int(highest)


@dataclasses.dataclass(frozen=True, slots=True)
class PlanArrays:
    """A plan's pieces as int32 tensors; ``x_start[i]`` to ``x_start[i + 1]`` is what belongs to piece (or merge) i.

    ``parts`` holds, beside each of ``rows``, the number of the part that the piece makes of the row, or -1 where it is
    the row's only piece. ``merge_rows`` are the rows that have not exactly one piece; their parts are consecutive.
    """

    first_key: Tensor
    num_keys: Tensor
    block_start: Tensor
    blocks: Tensor
    row_start: Tensor
    rows: Tensor
    parts: Tensor
    positions: Tensor
    merge_rows: Tensor
    merge_start: Tensor
    num_parts: int

    @classmethod
    def of(cls, plan: AttentionPlan) -> PlanArrays:
        """Lay out ``plan``."""
        pieces = plan.pieces
        order = sorted(range(len(pieces)), key=lambda i: pieces[i].first_key)
        of_row: list[list[int]] = [[] for _ in range(plan.num_tokens)]
        for i in order:
            for row in pieces[i].rows:
                of_row[row].append(i)
        part_of: dict[tuple[int, int], int] = {}
        merge_rows, merge_start = [], [0]
        for row, its_pieces in enumerate(of_row):
            if len(its_pieces) == 1:
                continue
            for i in its_pieces:
                part_of[i, row] = len(part_of)
            merge_rows.append(row)
            merge_start.append(len(part_of))
        block_start, row_start = [0], [0]
        blocks: list[int] = []
        rows: list[int] = []
        for piece in pieces:
            blocks += piece.blocks
            rows += piece.rows
            block_start.append(len(blocks))
            row_start.append(len(rows))
        parts = [part_of.get((i, row), -1) for i, piece in enumerate(pieces) for row in piece.rows]

        def tensor(values: list[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.int32, device=plan.device)

        return cls(
            first_key=tensor([piece.first_key for piece in pieces]),
            num_keys=tensor([piece.num_keys for piece in pieces]),
            block_start=tensor(block_start),
            blocks=tensor(blocks),
            row_start=tensor(row_start),
            rows=tensor(rows),
            parts=tensor(parts),
            positions=tensor(plan.positions),
            merge_rows=tensor(merge_rows),
            merge_start=tensor(merge_start),
            num_parts=len(part_of),
        )
