"""Blocks: nothing leaks, nothing is freed twice, nothing that is shared is ever written."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from parrot_mq.messages import SamplingParams
from parrot_workers.engine.block_manager import BlockManager
from parrot_workers.engine.detokenizer import Detokenizer
from parrot_workers.engine.port import SequenceInput
from parrot_workers.engine.sequence import Sequence

BLOCK_SIZE = 4


def make_sequence(token_ids: list[int], salt: str = "", name: str = "s") -> Sequence:
    source = SequenceInput(name, (), SamplingParams(), salt=salt)
    detokenizer = Detokenizer(lambda ids: "")
    return Sequence(source, token_ids, detokenizer, arrival=0, max_output_tokens=100, stop_ids=frozenset())


def admit(manager: BlockManager, sequence: Sequence) -> int:
    """Do what the scheduler does for a whole prompt; return the number of cached tokens."""
    blocks = manager.match(sequence)
    manager.hold(sequence, blocks)
    assert manager.grow(sequence, sequence.num_tokens)
    manager.publish(sequence, sequence.num_tokens)
    sequence.num_computed_tokens = sequence.num_tokens
    return len(blocks) * BLOCK_SIZE


def test_equal_prefixes_share_blocks() -> None:
    manager = BlockManager(8, BLOCK_SIZE)
    first, second = make_sequence([*range(10)]), make_sequence([*range(8), 50, 51])
    assert admit(manager, first) == 0
    assert admit(manager, second) == 8
    assert first.block_table[:2] == second.block_table[:2]
    assert manager.num_free_blocks == 8 - 4
    manager.check([first, second])


def test_a_whole_cached_prompt_leaves_its_last_token_to_compute() -> None:
    manager = BlockManager(8, BLOCK_SIZE)
    first, second = make_sequence([*range(8)]), make_sequence([*range(8)])
    admit(manager, first)
    assert admit(manager, second) == 4


def test_same_block_after_another_prefix_is_another_block() -> None:
    manager = BlockManager(8, BLOCK_SIZE)
    admit(manager, make_sequence([1, 2, 3, 4, 5, 6, 7, 8, 9]))
    assert manager.match(make_sequence([5, 6, 7, 8, 9])) == []


def test_tenants_never_share() -> None:
    manager = BlockManager(8, BLOCK_SIZE)
    admit(manager, make_sequence([*range(9)], salt="acme"))
    assert manager.match(make_sequence([*range(9)], salt="other")) == []
    assert len(manager.match(make_sequence([*range(9)], salt="acme"))) == 2


def test_content_outlives_its_holder_until_the_block_is_needed() -> None:
    manager = BlockManager(3, BLOCK_SIZE)
    sequence = make_sequence([*range(9)])
    admit(manager, sequence)
    manager.release(sequence)
    assert manager.num_free_blocks == 3
    assert len(manager.match(make_sequence([*range(9)]))) == 2
    # One block, uncached, is taken first; then the prefix's tail, then its head.
    other = make_sequence([90])
    admit(manager, other)
    assert len(manager.match(make_sequence([*range(9)]))) == 2
    assert manager.grow(other, 2 * BLOCK_SIZE)
    assert len(manager.match(make_sequence([*range(9)]))) == 1


def test_grow_gives_all_or_nothing() -> None:
    manager = BlockManager(2, BLOCK_SIZE)
    sequence = make_sequence([1])
    assert not manager.grow(sequence, 9)
    assert manager.num_free_blocks == 2
    assert sequence.block_table == []


def test_without_prefix_caching_nothing_is_found() -> None:
    manager = BlockManager(8, BLOCK_SIZE, enable_prefix_caching=False)
    admit(manager, make_sequence([*range(9)]))
    assert admit(manager, make_sequence([*range(9)])) == 0
    assert manager.num_cached_blocks == 0


def test_forget_keeps_blocks_with_their_holders() -> None:
    manager = BlockManager(4, BLOCK_SIZE)
    sequence = make_sequence([*range(9)])
    admit(manager, sequence)
    manager.forget()
    assert manager.match(make_sequence([*range(9)])) == []
    manager.check([sequence])


def test_check_finds_a_leak() -> None:
    manager = BlockManager(4, BLOCK_SIZE)
    sequence = make_sequence([*range(9)])
    admit(manager, sequence)
    with pytest.raises(AssertionError, match="reference counts"):
        manager.check([])


class Blocks(RuleBasedStateMachine):
    """Random admissions, growth and releases, with a model of what each block's slots were written with."""

    def __init__(self) -> None:
        super().__init__()
        self.manager = BlockManager(10, BLOCK_SIZE)
        self.live: list[Sequence] = []
        self.slots: dict[tuple[int, int], tuple[str, tuple[int, ...]]] = {}
        """(block, offset) -> the salt and the whole prefix whose key was written there."""
        self.count = 0

    def write(self, sequence: Sequence, start: int) -> None:
        for position in range(start, sequence.num_tokens):
            block, offset = sequence.block_table[position // BLOCK_SIZE], position % BLOCK_SIZE
            holders = [other for other in self.live if other is not sequence and block in other.block_table]
            assert not holders, "a block that another sequence holds is written"
            self.slots[block, offset] = (sequence.source.salt, tuple(sequence.token_ids[: position + 1]))
        sequence.num_computed_tokens = sequence.num_tokens
        self.manager.publish(sequence, sequence.num_tokens)

    @rule(salt=st.sampled_from("ab"), token_ids=st.lists(st.integers(0, 1), min_size=1, max_size=14))
    def admit(self, salt: str, token_ids: list[int]) -> None:
        self.count += 1
        sequence = make_sequence(token_ids, salt, f"s{self.count}")
        blocks = self.manager.match(sequence)
        if self.manager.num_blocks_for(len(token_ids)) - len(blocks) > self.manager.num_free_after_hold(blocks):
            return
        self.manager.hold(sequence, blocks)
        assert self.manager.grow(sequence, len(token_ids))
        self.live.append(sequence)
        self.write(sequence, len(blocks) * BLOCK_SIZE)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), token_id=st.integers(0, 1))
    def decode(self, data: st.DataObject, token_id: int) -> None:
        sequence = data.draw(st.sampled_from(self.live))
        if self.manager.grow(sequence, sequence.num_tokens + 1):
            sequence.token_ids.append(token_id)
            self.write(sequence, sequence.num_tokens - 1)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(self.live))
        self.live.remove(sequence)
        self.manager.release(sequence)

    @invariant()
    def books_agree(self) -> None:
        self.manager.check(self.live)

    @invariant()
    def every_sequence_reads_what_it_would_have_written(self) -> None:
        for sequence in self.live:
            for position in range(sequence.num_tokens):
                slot = sequence.block_table[position // BLOCK_SIZE], position % BLOCK_SIZE
                assert self.slots[slot] == (sequence.source.salt, tuple(sequence.token_ids[: position + 1]))

    def teardown(self) -> None:
        for sequence in self.live:
            self.manager.release(sequence)
        self.manager.check([])
        assert self.manager.num_free_blocks == 10


TestBlocks = Blocks.TestCase
TestBlocks.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
