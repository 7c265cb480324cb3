from __future__ import annotations

from parrot_mq.scheduler.policy.books import Books, Charge


def charge(tpot_ms: int) -> Charge:
    return Charge(10, 10, 20, urgent=True, patient=False, tpot_ms=tpot_ms, prefix=())


def test_the_strictest_promise_that_still_holds_is_the_bound() -> None:
    books = Books()
    for name, tpot_ms in (("a", 50), ("b", 20), ("c", 20), ("d", 0), ("e", 30)):
        books.add(name, charge(tpot_ms))
    bounds = []
    for name in ("b", "d", "c", "e", "a"):
        books.remove(name)
        bounds.append(books.bound_ms)
    assert bounds == [20, 20, 30, 50, 0]


def test_promises_that_are_kept_leave_nothing_behind_a_stricter_one() -> None:
    books = Books()
    books.add("strict", charge(10))
    for n in range(5000):
        books.add(f"n{n}", charge(50))
        books.remove(f"n{n}")
    assert len(books._bounds) < 200
    books.add("other", charge(40))
    books.remove("strict")
    assert books.bound_ms == 40
