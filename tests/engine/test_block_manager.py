"""Blocks: shared by content, given away in order, kept on demand, and found again in host memory."""

from __future__ import annotations

import pytest

from parrot_mq.messages import SamplingParams
from parrot_workers.engine.block_manager import BlockManager
from parrot_workers.engine.detokenizer import Detokenizer
from parrot_workers.engine.host_tier import HostTier, ReloadCost, Transfers
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


def found(manager: BlockManager, token_ids: list[int], salt: str = "") -> int:
    """How many blocks of a prompt need not be computed, its last token left out."""
    return len(manager.match(make_sequence(token_ids, salt)))


def test_shrink_gives_back_what_was_grown_for_guesses() -> None:
    manager = BlockManager(4, BLOCK_SIZE)
    sequence = make_sequence([*range(6)])
    admit(manager, sequence)
    assert manager.grow(sequence, 6 + 7)
    assert manager.num_free_blocks == 0
    manager.shrink(sequence, 7)
    assert (manager.num_free_blocks, len(sequence.block_table)) == (2, 2)
    manager.check([sequence])


def test_shrink_never_takes_published_blocks() -> None:
    manager = BlockManager(4, BLOCK_SIZE)
    sequence = make_sequence([*range(8)])
    admit(manager, sequence)
    with pytest.raises(AssertionError, match="others may read"):
        manager.shrink(sequence, 4)


def test_what_is_not_certain_cannot_be_published() -> None:
    manager = BlockManager(4, BLOCK_SIZE)
    sequence = make_sequence([*range(6)])
    assert manager.grow(sequence, 8)
    with pytest.raises(AssertionError, match="block 1 is not full"):
        manager.publish(sequence, 8)


def test_touched_blocks_count_what_was_ever_given() -> None:
    manager = BlockManager(8, BLOCK_SIZE)
    first = make_sequence([1, 2, 3])
    admit(manager, first)
    manager.release(first)
    admit(manager, make_sequence([4, 5, 6]))
    assert manager.num_touched_blocks == 1
    admit(manager, make_sequence([*range(9)]))
    assert manager.num_touched_blocks == 4


def retained(manager: BlockManager, until_s: float = 10.0) -> list[int]:
    """Leave two blocks retained and one cached, used later, in a cache of three; return the retained tokens."""
    prompt = [*range(9)]
    for ids in (prompt, [50, 51, 52, 53]):
        sequence = make_sequence(ids)
        if ids is prompt:
            manager.retain("hint", ids, "", until_s)
        admit(manager, sequence)
        manager.release(sequence)
    return prompt


def test_retained_content_is_given_away_last() -> None:
    manager = BlockManager(3, BLOCK_SIZE)
    prompt = retained(manager)
    other = make_sequence([90])
    admit(manager, other)
    assert (found(manager, prompt), found(manager, [50, 51, 52, 53, 54])) == (2, 0)
    # Nothing else is left: rather than a sequence that waits, the retained prefix loses its tail.
    assert manager.grow(other, 2 * BLOCK_SIZE)
    assert found(manager, prompt) == 1
    manager.check([other])


@pytest.mark.parametrize("how", ["released", "expired", "replaced"])
def test_retention_ends(how: str) -> None:
    manager = BlockManager(3, BLOCK_SIZE)
    prompt = retained(manager, until_s=10.0)
    manager.expire_hints(9.9)
    if how == "released":
        manager.release_hint("hint")
    elif how == "expired":
        manager.expire_hints(10.0)
    else:
        manager.retain("hint", [1], "", 99.0)
    manager.check([])
    other = make_sequence([90])
    assert manager.grow(other, 3 * BLOCK_SIZE)
    assert found(manager, prompt) == 0


def test_retention_is_of_one_tenant() -> None:
    manager = BlockManager(3, BLOCK_SIZE)
    manager.retain("hint", [*range(9)], "acme", 10.0)
    for salt in ("acme", "other"):
        sequence = make_sequence([*range(5)], salt)
        admit(manager, sequence)
        manager.release(sequence)
    other = make_sequence([90])
    assert manager.grow(other, 2 * BLOCK_SIZE)
    assert found(manager, [*range(5)], "acme") == 1
    assert found(manager, [*range(5)], "other") == 0


def test_content_given_away_comes_back_from_host_memory() -> None:
    tier = HostTier(4)
    manager = BlockManager(3, BLOCK_SIZE, tier=tier)
    first = make_sequence([*range(9)])
    admit(manager, first)
    table = list(first.block_table)
    manager.release(first)
    assert manager.take_transfers() == Transfers()
    other = make_sequence([*range(50, 60)])
    admit(manager, other)
    stores = manager.take_transfers().stores
    assert [block for block, _ in stores] == [table[1], table[0]], "from the tail"
    manager.release(other)
    again = make_sequence([*range(9)])
    assert manager.match(again) == [None, None]
    assert admit(manager, again) == 2 * BLOCK_SIZE
    slots = dict(stores)
    transfers = manager.take_transfers()
    assert transfers.loads == ((slots[table[0]], again.block_table[0]), (slots[table[1]], again.block_table[1]))
    assert manager.num_reloaded_blocks == 2
    # What came back is shared like anything else, and a copy of it is still in host memory: no second store of it.
    assert found(manager, [*range(9)]) == 2
    manager.release(again)
    admit(manager, make_sequence([*range(70, 80)]))
    assert {block for block, _ in manager.take_transfers().stores}.isdisjoint(again.block_table)


def test_a_block_given_away_before_its_content_came_is_not_loaded() -> None:
    manager = BlockManager(2, BLOCK_SIZE, tier=HostTier(4))
    first = make_sequence([*range(4)])
    admit(manager, first)
    manager.release(first)
    other = make_sequence([*range(50, 58)])
    admit(manager, other)
    manager.take_transfers()
    manager.release(other)
    again = make_sequence([*range(5)])
    manager.hold(again, manager.match(again))
    manager.release(again)
    last = make_sequence([90])
    assert manager.grow(last, 2 * BLOCK_SIZE)
    transfers = manager.take_transfers()
    assert transfers.loads == ()
    assert found(manager, [*range(5)]) == 1, "it is in host memory still"


def test_tenants_do_not_meet_in_host_memory() -> None:
    manager = BlockManager(2, BLOCK_SIZE, tier=HostTier(4))
    first = make_sequence([*range(4)], "acme")
    admit(manager, first)
    manager.release(first)
    admit(manager, make_sequence([*range(50, 58)]))
    assert (found(manager, [*range(5)], "acme"), found(manager, [*range(5)], "other")) == (1, 0)


def test_a_copy_that_is_dearer_than_computing_is_not_made() -> None:
    tier = HostTier(4, ReloadCost(fixed_ms=3.0, copy_block_ms=1.0, compute_block_ms=2.0))
    manager = BlockManager(4, BLOCK_SIZE, tier=tier)
    first = make_sequence([*range(16)])
    admit(manager, first)
    manager.release(first)
    other = make_sequence([*range(50, 66)])
    admit(manager, other)
    manager.take_transfers()
    manager.release(other)
    assert [found(manager, [*range(count), 99]) for count in (4, 8, 12, 16)] == [0, 0, 3, 4]


@pytest.mark.parametrize(
    ("cost", "in_host", "expected"),
    [
        pytest.param(ReloadCost(), "dhhd", 4, id="for nothing, everything"),
        pytest.param(ReloadCost(0, 2, 1), "ddhh", 2, id="never dearer than computing"),
        pytest.param(ReloadCost(0, 2, 1), "hhdd", 4, id="what lies behind makes up for it"),
        pytest.param(ReloadCost(0, 2, 1), "hhd", 0, id="or does not"),
        pytest.param(ReloadCost(0, 2, 1), "hdddhhd", 4, id="up to the middle"),
        pytest.param(ReloadCost(5, 0, 1), "hhhh", 0, id="too few for the fixed part"),
        pytest.param(ReloadCost(5, 0, 1), "hhhhh", 5, id="just enough"),
        pytest.param(ReloadCost(), "", 0, id="nothing"),
    ],
)
def test_how_much_of_a_prefix_is_worth_copying(cost: ReloadCost, in_host: str, expected: int) -> None:
    flags = [letter == "h" for letter in in_host]
    assert cost.worthwhile(flags) == expected


def test_whether_copies_can_pay_at_all() -> None:
    assert ReloadCost(9.0, 1.0, 2.0).can_pay
    slow = ReloadCost(0.0, 2.0, 2.0)
    assert not slow.can_pay
    tier = HostTier(2, slow)
    tier.store(b"a", 0)
    assert (len(tier), tier.take_transfers()) == (0, Transfers())


def test_the_tier_gives_up_what_was_used_least_recently_but_nothing_that_is_being_read() -> None:
    tier = HostTier(2)
    tier.store(b"a", 0)
    tier.store(b"b", 1)
    tier.store(b"a", 2)
    tier.store(b"c", 3)
    assert set(tier.slots) == {b"a", b"c"}
    assert {block for block, _ in tier.take_transfers().stores} == {0, 3}
    tier.pin(b"a")
    tier.pin(b"c")
    tier.load(b"a", 7)
    tier.store(b"d", 4)
    assert set(tier.slots) == {b"a", b"c"}, "both are pinned"
    assert tier.take_transfers() == Transfers((), ((tier.slots[b"a"], 7),))
    tier.store(b"d", 4)
    assert set(tier.slots) == {b"c", b"d"}
    tier.check()


def test_nothing_smaller_than_one_block() -> None:
    with pytest.raises(ValueError, match="at least one block"):
        BlockManager(0)
    with pytest.raises(ValueError, match="at least one slot"):
        HostTier(0)
