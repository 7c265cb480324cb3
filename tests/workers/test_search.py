"""Searching for somebody else's pattern, within limits."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from parrot_workers.worker import search as search_module
from parrot_workers.worker.search import BadPattern, Searcher, SearchLimit

ENDLESS = r"(a|aa)+$"
TEXT = "a" * 100 + "b"


@pytest.fixture
def searcher() -> Iterator[Searcher]:
    searcher = Searcher(cpu_limit_s=0.1)
    yield searcher
    searcher.close()


def test_group_one_or_the_match_or_nothing(searcher: Searcher) -> None:
    assert searcher.search(r"<(\w*)>", "an <empty> or <>") == "empty"
    assert searcher.search(r"\w+", "Zürich\n") == "Zürich"
    assert searcher.search(r"(?<=a)b$", "ab\n") == "b"  # as `re` has it: look-around, and $ before the last line's end
    assert searcher.search(r"(a)|b", "b") is None
    assert searcher.search("x", "abc") is None
    assert searcher.search(".", "\ud800") == "\ud800"
    long = "é" * 5_000_000
    assert searcher.search("(é+)", long) == long


@pytest.mark.parametrize("pattern", ["(", "(" * 10_000, "a{99999999999999999999}"])
def test_what_is_no_pattern(searcher: Searcher, pattern: str) -> None:
    with pytest.raises(BadPattern):
        searcher.search(pattern, "x")
    assert searcher.search("x", "x") == "x"


def test_a_search_that_takes_too_long_ends_and_the_next_one_works(searcher: Searcher) -> None:
    for _ in range(2):
        with pytest.raises(SearchLimit):
            searcher.search(ENDLESS, TEXT)
        assert searcher.search("b", TEXT) == "b"


def test_time_is_counted_for_each_search(searcher: Searcher) -> None:
    for _ in range(20):  # together more than the limit
        assert searcher.search("(?:a|b)+", "ab" * 300_000) is not None


def test_a_search_that_takes_too_much_memory() -> None:
    searcher = Searcher(cpu_limit_s=60, memory_limit_bytes=60_000_000)
    with pytest.raises(SearchLimit):
        searcher.search("(a|b)*", "ab" * 8_000_000)
    searcher.close()


def test_a_machine_that_is_too_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_module, "WALL_LIMIT_S", 0.1)
    searcher = Searcher(cpu_limit_s=60)
    with pytest.raises(SearchLimit):
        searcher.search(ENDLESS, TEXT)
    searcher.close()


def test_one_that_was_ended_is_started_again(searcher: Searcher) -> None:
    assert searcher.search("a", TEXT) == "a"
    assert searcher._process is not None
    searcher._process.kill()
    searcher._process.wait()
    with pytest.raises(SearchLimit):
        searcher.search("a", TEXT)
    assert searcher.search("a", TEXT) == "a"


def test_several_threads(searcher: Searcher) -> None:
    with ThreadPoolExecutor(4) as threads:
        texts = [f"x{number}" for number in range(50)]
        assert list(threads.map(lambda text: searcher.search("x.*", text), texts)) == texts
