"""The books of what an engine is to keep."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from parrot_mq.scheduler.policy.retention import Change, Retention


def test_what_fits_is_kept_and_what_is_dropped_released() -> None:
    books = Retention(100)
    assert books.want("a", 60, 5.0) == Change(kept=("a",))
    assert books.want("a", 60, 5.0) == Change()
    assert books.want("b", 40, 9.0) == Change(kept=("b",))
    assert books.num_tokens == 100
    assert books.drop("a") == Change(released=("a",))
    assert books.drop("a") == Change()
    assert (books.num_tokens, len(books)) == (40, 1)


def test_what_is_read_sooner_drives_out_what_is_read_later() -> None:
    books = Retention(100)
    books.want("far", 50, 90.0)
    books.want("near", 50, 10.0)
    assert books.want("nearer", 60, 5.0) == Change(("nearer",), ("far", "near"))
    assert books.want("farther", 60, 95.0) == Change()
    assert not books.keeps("farther")
    assert books.drop("nearer") == Change(("near", "far"), ("nearer",))


def test_a_wish_that_moves_closer_is_kept_then() -> None:
    books = Retention(100)
    books.want("a", 80, 20.0)
    assert books.want("b", 80, 30.0) == Change()
    assert books.want("b", 80, 10.0) == Change(("b",), ("a",))


def test_those_behind_one_that_finds_no_room_come_in_when_it_is_dropped() -> None:
    books = Retention(100)
    books.want("a", 60, 1.0)
    assert books.want("b", 60, 2.0) == Change()
    assert books.want("c", 30, 3.0) == Change()
    assert books.drop("b") == Change(kept=("c",))


def test_what_is_larger_than_the_budget_is_in_nobodys_way() -> None:
    books = Retention(100)
    assert books.want("huge", 101, 1.0) == Change()
    assert books.want("a", 100, 2.0) == Change(kept=("a",))
    assert books.resize(210) == Change(kept=("huge",))
    assert books.resize(50) == Change(released=("a", "huge"))
    assert books.num_tokens == 0


_KEYS = st.sampled_from("abcdefgh")
_EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("want"), _KEYS, st.integers(1, 60), st.integers(0, 20)),
        st.tuples(st.just("drop"), _KEYS),
        st.tuples(st.just("resize"), st.integers(0, 120)),
    ),
    max_size=60,
)


@given(_EVENTS)
def test_the_budget_holds_and_the_nearest_come_first(events: list[tuple[Any, ...]]) -> None:
    books = Retention(100)
    budget = 100
    wished: dict[str, tuple[int, int]] = {}
    told: set[str] = set()
    for name, *args in events:
        if name == "want":
            key, num_tokens, at = args
            change = books.want(key, num_tokens, float(at))
            wished[key] = (num_tokens, at)
        elif name == "drop":
            change = books.drop(args[0])
            wished.pop(args[0], None)
        else:
            budget = args[0]
            change = books.resize(budget)
        assert not set(change.kept) & told
        assert set(change.released) <= told
        told = told - set(change.released) | set(change.kept)
        assert told == {key for key in wished if books.keeps(key)}
        assert books.num_tokens == sum(wished[key][0] for key in told) <= budget
        left = [key for key in wished if key not in told and wished[key][0] <= budget]
        if left:  # a nearest one that is left finds no room, even in place of all that is read later
            soonest = min(wished[key][1] for key in left)
            taken = sum(wished[key][0] for key in told if wished[key][1] <= soonest)
            assert any(wished[key][0] + taken > budget for key in left if wished[key][1] == soonest)
