from __future__ import annotations

import math

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from parrot_mq.scheduler.policy.room_ranking import LARGEST, NUM_SEEN, SMALLEST, RoomRanking, room_class

names = st.sampled_from([f"e{n}" for n in range(NUM_SEEN)])
scores = st.sampled_from([-1.0, 0.0, 0.5, 1.0, 1e9])
rooms = st.sampled_from([-math.inf, -1.0, 0.0, 63.0, 64.0, 255.5, 256.0, 300.0, 4096.0, 65_536.0, math.inf])


class RoomRankingMachine(RuleBasedStateMachine):
    """A ranking beside a dict that is searched and sorted each time."""

    def __init__(self) -> None:
        super().__init__()
        self.ranking = RoomRanking()
        self.entries: dict[str, tuple[float, str, float]] = {}

    @rule(name=names, score=scores, room=rooms)
    def put(self, name: str, score: float, room: float) -> None:
        self.ranking.put(name, score, room)
        self.entries[name] = score, name, room

    @rule(name=names)
    def discard(self, name: str) -> None:
        self.ranking.discard(name)
        self.entries.pop(name, None)

    @rule(need=rooms, count=st.integers(0, NUM_SEEN + 1), without=st.sets(names, max_size=3))
    def search(self, need: float, count: int, without: set[str]) -> None:
        fit = sorted(entry for entry in self.entries.values() if entry[2] >= need and entry[1] not in without)
        assert self.ranking.best(need, count, without) == fit[:count]

    @invariant()
    def it_has_what_was_put(self) -> None:
        assert len(self.ranking) == len(self.entries)


TestRoomRanking = RoomRankingMachine.TestCase
TestRoomRanking.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("room", [0, 1, SMALLEST - 1, SMALLEST, 255, 256, 1023, 1024, 16_384, LARGEST - 1, LARGEST])
def test_a_class_of_room_holds_what_differs_by_less_than_four_times(room: int) -> None:
    assert room_class(room - 1) <= room_class(room) <= room_class(room + 0.5)
    if SMALLEST <= room < LARGEST // 4:
        assert room_class(4 * room) == room_class(room) + 1


def test_engines_with_room_are_found_behind_many_better_ones_without() -> None:
    ranking = RoomRanking()
    for n in range(500):
        ranking.put(f"small{n}", float(n), 100.0)
    ranking.put("large", 1e6, 5000.0)
    assert ranking.best(1000, 2) == [(1e6, "large", 5000.0)]
