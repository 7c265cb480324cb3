"""Blocks under random orders of everything: no leak, no double free, no shared block written, no wrong content found.

Contents are modelled: what a slot of the device holds is the tenant and all tokens up to it, as keys and values do.
Planning and computing are apart, as in the engine: blocks are given, taken and published first, then the transfers are
made, then everything that was scheduled is written.
"""

from __future__ import annotations

import dataclasses

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from parrot_mq.messages import SamplingParams
from parrot_workers.engine.block_manager import BlockManager
from parrot_workers.engine.detokenizer import Detokenizer
from parrot_workers.engine.host_tier import HostTier
from parrot_workers.engine.port import SequenceInput
from parrot_workers.engine.sequence import Sequence

SIZE = 2
NUM_BLOCKS = 6
NUM_SLOTS = 5

Content = tuple[str, tuple[int, ...]]
"""The salt, and the tokens up to here and including it."""
KEYS = st.sampled_from(["x", "y"])
SALTS = st.sampled_from(["a", "a", "a", "b"])
TOKEN = st.sampled_from([0, 0, 0, 1])
PROMPTS = ([0] * 9, [0, 0, 0, 1, 0, 0, 1, 0, 0], [1] * 9, [1, 1, 0, 0, 0, 1, 0, 0, 0])
TOKENS = st.builds(lambda prompt, count: prompt[:count], st.sampled_from(PROMPTS), st.integers(3, 9))
"""Such that prompts begin alike, and come again."""
AT_ONCE = st.sampled_from([True, True, True, False])
MAX_LIVE = 3
LONGEST = 8
"""Tokens; a sequence that has more ends with the step."""
QUIET_STEPS = 12
"""Steps between troubles, for what they end takes a while to come about."""


@dataclasses.dataclass(eq=False)
class Live:
    """A sequence that holds blocks."""

    sequence: Sequence
    scheduled: int = 0
    """Tokens that are computed after the next step, if any are scheduled for it."""
    guesses: tuple[int, ...] = ()
    """Tokens that the next step computes behind those, though nobody knows whether they are right."""

    @property
    def salt(self) -> str:
        return self.sequence.source.salt


class WatchedManager(BlockManager):
    """Notes which blocks were given to somebody since the last step."""

    def __init__(self, tier: HostTier) -> None:
        super().__init__(NUM_BLOCKS, SIZE, tier=tier)
        self.taken: set[int] = set()

    def _take(self) -> int:
        block = super()._take()
        self.taken.add(block)
        return block


class Blocks(RuleBasedStateMachine):
    """A manager with a host tier, its sequences, and the contents of both memories."""

    def __init__(self) -> None:
        super().__init__()
        self.tier = HostTier(NUM_SLOTS)
        self.manager = WatchedManager(self.tier)
        self.live: list[Live] = []
        self.preempted: list[Sequence] = []
        self.device: list[list[Content | None]] = [[None] * SIZE for _ in range(NUM_BLOCKS)]
        self.host: list[list[Content | None]] = [[None] * SIZE for _ in range(NUM_SLOTS)]
        self.readable: set[int] = set()
        """Blocks that could be found after the last step: nobody may write them as long as they are not given away."""
        self.written: set[tuple[int, int]] = set()
        """Slots written by this step."""
        self.meanings: dict[bytes, Content] = {}
        """What each hash stands for."""
        self.hints: dict[str, tuple[str, list[int], float]] = {}
        self.now_s = 0.0
        self.count = 0
        self.num_steps = 0
        """Since the last trouble."""

    # Planning --------------------------------------------------------------------------------------------------------

    def start(self, sequence: Sequence, whole: bool, at_once: bool) -> None:
        """Admit a sequence if it fits, and schedule all of it ``at_once`` or later."""
        before = self.kept()
        prefix = self.manager.match(sequence, whole=whole)
        self.learn(sequence)
        lacking = self.manager.num_blocks_for(sequence.num_tokens) - len(prefix)
        if lacking > self.manager.num_free_after_hold(prefix):
            return
        self.manager.hold(sequence, prefix)
        assert self.manager.grow(sequence, sequence.num_tokens), "what would be left after a hold was not there"
        sequence.num_computed_tokens = len(prefix) * SIZE
        self.live.append(Live(sequence))
        self.check_kept(before)
        if at_once and sequence.num_uncomputed_tokens:
            self.compute_later(self.live[-1], sequence.num_uncomputed_tokens)

    def compute_later(self, one: Live, count: int) -> None:
        one.scheduled = one.sequence.num_computed_tokens + count
        self.manager.publish(one.sequence, one.scheduled)
        self.learn(one.sequence)

    def learn(self, sequence: Sequence) -> None:
        for index, digest in enumerate(sequence.block_hashes, 1):
            meaning = (sequence.source.salt, tuple(sequence.token_ids[: index * SIZE]))
            assert self.meanings.setdefault(digest, meaning) == meaning, "one hash for two contents"

    @precondition(lambda self: len(self.live) < MAX_LIVE)
    @rule(data=st.data(), salt=SALTS, token_ids=TOKENS, whole=st.booleans(), at_once=AT_ONCE, ends_plan=st.booleans())
    def admit(
        self, data: st.DataObject, salt: str, token_ids: list[int], whole: bool, at_once: bool, ends_plan: bool
    ) -> None:
        self.count += 1
        source = SequenceInput(f"s{self.count}", (), SamplingParams(), salt=salt)
        sequence = Sequence(
            source, token_ids, Detokenizer(lambda ids: ""), arrival=0, max_output_tokens=100, stop_ids=frozenset()
        )
        self.start(sequence, whole, at_once)
        if ends_plan:
            self.run_step(data)

    @precondition(lambda self: self.preempted and len(self.live) < MAX_LIVE)
    @rule(data=st.data(), at_once=AT_ONCE, ends_plan=st.booleans())
    def resume(self, data: st.DataObject, at_once: bool, ends_plan: bool) -> None:
        index = data.draw(st.integers(0, len(self.preempted) - 1))
        self.start(self.preempted.pop(index), whole=False, at_once=at_once)
        if ends_plan:
            self.run_step(data)

    @precondition(lambda self: any(one.sequence.num_uncomputed_tokens and not one.scheduled for one in self.live))
    @rule(data=st.data())
    def schedule(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from([x for x in self.live if x.sequence.num_uncomputed_tokens and not x.scheduled]))
        self.compute_later(one, data.draw(st.integers(1, one.sequence.num_uncomputed_tokens)))

    @precondition(lambda self: any(not one.sequence.num_uncomputed_tokens for one in self.live))
    @rule(data=st.data(), token_id=TOKEN, guesses=st.lists(TOKEN, max_size=5), ends_plan=AT_ONCE)
    def decode(self, data: st.DataObject, token_id: int, guesses: list[int], ends_plan: bool) -> None:
        for one in self.live:
            if not one.sequence.num_uncomputed_tokens:
                self.decode_one(one, token_id, guesses)
        if ends_plan:
            self.run_step(data)

    def decode_one(self, one: Live, token_id: int, guesses: list[int]) -> None:
        before, sequence = self.kept(), one.sequence
        if self.manager.grow(sequence, sequence.num_tokens + 1 + len(guesses)):
            sequence.token_ids.append(token_id)
            one.guesses = tuple(guesses)
            self.compute_later(one, 1)
            self.check_kept(before)

    @precondition(lambda self: any(not one.scheduled for one in self.live))
    @rule(data=st.data(), comes_back=st.booleans())
    def release(self, data: st.DataObject, comes_back: bool) -> None:
        one = data.draw(st.sampled_from([one for one in self.live if not one.scheduled]))
        self.drop(one)
        if comes_back:
            self.preempted.append(one.sequence)

    def drop(self, one: Live) -> None:
        self.live.remove(one)
        self.manager.release(one.sequence)
        one.sequence.num_computed_tokens = 0

    # Hints -----------------------------------------------------------------------------------------------------------

    @rule(key=KEYS, salt=SALTS, token_ids=TOKENS, for_s=st.integers(1, 9))
    def retain(self, key: str, salt: str, token_ids: list[int], for_s: int) -> None:
        self.hints[key] = (salt, token_ids, self.now_s + for_s)
        self.manager.retain(key, token_ids, salt, self.now_s + for_s)

    @precondition(lambda self: self.hints)
    @rule(key=KEYS)
    def release_hint(self, key: str) -> None:
        self.hints.pop(key, None)
        self.manager.release_hint(key)

    def time_passes(self) -> None:
        self.now_s += 1
        self.hints = {key: hint for key, hint in self.hints.items() if hint[2] > self.now_s}
        self.manager.expire_hints(self.now_s)

    def kept(self) -> set[Content]:
        """What is retained, on the device, and held by nobody."""
        held = {block for one in self.live for block in one.sequence.block_table}
        free = [self.meanings[digest] for digest, block in self.manager._cached.items() if block not in held]
        return {
            (salt, ids)
            for salt, ids in free
            if any(salt == other and ids == tuple(wanted[: len(ids)]) for other, wanted, _ in self.hints.values())
        }

    def check_kept(self, before: set[Content]) -> None:
        """Nothing retained was given away while there was anything else to give."""
        there = {self.meanings[digest] for digest in self.manager._cached}
        if before - there:
            assert self.manager.num_free_blocks == len(self.kept()), "retained content was given away first"

    # Computing -------------------------------------------------------------------------------------------------------

    @precondition(lambda self: any(one.scheduled for one in self.live))
    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        self.run_step(data)

    def run_step(self, data: st.DataObject) -> None:
        self.num_steps += 1
        self.time_passes()
        transfers = self.manager.take_transfers()
        assert len({slot for _, slot in transfers.stores}) == len(transfers.stores), "a slot is stored to twice"
        assert len({block for _, block in transfers.loads}) == len(transfers.loads), "a block is loaded to twice"
        assert {block for _, block in transfers.loads} <= set(self.manager._cached.values()), "a load for nobody"
        for block, slot in transfers.stores:
            self.host[slot] = list(self.device[block])
        for slot, block in transfers.loads:
            self.device[block] = list(self.host[slot])
        self.readable = (self.readable - self.manager.taken) | {block for _, block in transfers.loads}
        self.written.clear()
        for one in self.live:
            if one.scheduled:
                self.compute(one, data)
        self.check_contents()
        for one in [one for one in self.live if one.sequence.num_tokens > LONGEST]:
            self.drop(one)
        self.readable = set(self.manager._cached.values())
        self.manager.taken.clear()

    def compute(self, one: Live, data: st.DataObject) -> None:
        sequence = one.sequence
        written = [*sequence.token_ids[: one.scheduled], *one.guesses]
        for position in range(sequence.num_computed_tokens, len(written)):
            block, offset = sequence.block_table[position // SIZE], position % SIZE
            assert block not in self.readable, "a block that others may read is written"
            assert (block, offset) not in self.written, "two sequences write the same block"
            self.written.add((block, offset))
            self.device[block][offset] = (one.salt, tuple(written[: position + 1]))
        sequence.num_computed_tokens = one.scheduled
        if one.guesses:
            accepted = data.draw(st.integers(0, len(one.guesses)))
            sequence.token_ids += one.guesses[:accepted]
            sequence.num_computed_tokens += accepted
            self.manager.shrink(sequence, sequence.num_tokens)
        one.scheduled, one.guesses = 0, ()

    def check_contents(self) -> None:
        """Whatever can be found holds what its hash says, and whoever runs reads what it would have written."""
        for places, memory in ((self.manager._cached, self.device), (self.tier.slots, self.host)):
            for digest, place in places.items():
                salt, ids = self.meanings[digest]
                assert memory[place] == [(salt, ids[: len(ids) - SIZE + 1 + offset]) for offset in range(SIZE)]
        for one in self.live:
            sequence = one.sequence
            for position in range(sequence.num_computed_tokens):
                content = self.device[sequence.block_table[position // SIZE]][position % SIZE]
                assert content == (one.salt, tuple(sequence.token_ids[: position + 1]))

    @precondition(lambda self: self.num_steps >= QUIET_STEPS)
    @rule()
    def restart(self) -> None:
        """A step failed: nothing of what was planned, or copied, can be relied on."""
        self.num_steps = 0
        self.manager.take_transfers()
        for one in list(self.live):
            self.drop(one)
            self.preempted.append(one.sequence)
        self.manager.forget()
        self.device = [[None] * SIZE for _ in range(NUM_BLOCKS)]
        self.host = [[None] * SIZE for _ in range(NUM_SLOTS)]
        self.readable.clear()

    @precondition(
        lambda self: (
            self.num_steps >= QUIET_STEPS and not any(one.scheduled for one in self.live) and not self.tier.loading
        )
    )
    @rule()
    def forget(self) -> None:
        self.num_steps = 0
        self.manager.forget()
        self.readable.clear()
        assert (self.manager.num_cached_blocks, len(self.tier)) == (0, 0)

    # Always ----------------------------------------------------------------------------------------------------------

    @invariant()
    def books_agree(self) -> None:
        self.manager.check(one.sequence for one in self.live)
        held = {block for one in self.live for block in one.sequence.block_table}
        assert self.manager.num_free_blocks == NUM_BLOCKS - len(held)
        assert self.manager.num_touched_blocks >= len(held)
        kept = {self.meanings[self.manager._hashes[block] or b""] for block in self.manager._kept}
        assert kept == self.kept(), "what is retained is not what was asked for"

    def teardown(self) -> None:
        for one in list(self.live):
            self.drop(one)
        for key in list(self.hints):
            self.manager.release_hint(key)
        self.manager.check([])
        assert self.manager.num_free_blocks == NUM_BLOCKS


TestBlocks = Blocks.TestCase
TestBlocks.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)
