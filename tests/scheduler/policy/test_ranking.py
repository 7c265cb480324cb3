from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from parrot_mq.scheduler.policy.ranking import MAX_BUCKET, Ranking

names = st.sampled_from([f"e{n}" for n in range(12)])
keys = st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0, 1e9])


class RankingMachine(RuleBasedStateMachine):
    """A ranking beside a dict that is sorted each time."""

    def __init__(self) -> None:
        super().__init__()
        self.ranking = Ranking()
        self.keys: dict[str, float] = {}

    @rule(name=names, key=keys)
    def put(self, name: str, key: float) -> None:
        self.ranking.put(name, key)
        self.keys[name] = key

    @rule(name=names)
    def discard(self, name: str) -> None:
        self.ranking.discard(name)
        self.keys.pop(name, None)

    @rule(until=keys)
    def due(self, until: float) -> None:
        due = sorted((key, name) for name, key in self.keys.items() if key <= until)
        assert self.ranking.due(until) == [name for _, name in due]
        for _, name in due:
            del self.keys[name]

    @invariant()
    def the_order_is_that_of_a_sort(self) -> None:
        expected = sorted((key, name) for name, key in self.keys.items())
        for count in (0, 1, 3, 20):
            assert self.ranking.first(count) == expected[:count]
        assert len(self.ranking) == len(expected)
        assert all(name in self.ranking for name in self.keys)


TestRanking = RankingMachine.TestCase
TestRanking.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_buckets_are_split_and_go_when_they_are_empty() -> None:
    ranking, count = Ranking(), 5 * MAX_BUCKET
    for n in range(count):
        ranking.put(f"e{n:05}", float(n * 7919 % count))
    assert [key for key, _ in ranking.first(count)] == [float(n) for n in range(count)]
    assert max(map(len, ranking._buckets)) <= MAX_BUCKET
    for n in range(count):
        ranking.discard(f"e{n:05}")
    assert (len(ranking), ranking._buckets, ranking._lasts) == (0, [], [])
