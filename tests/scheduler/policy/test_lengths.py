from __future__ import annotations

from parrot_mq.scheduler.policy import OutputLengths
from parrot_mq.scheduler.policy.lengths import MAX_FUNCTIONS
from tests.scheduler.support import add, core_with


def test_outputs_of_a_function_are_learned() -> None:
    core, lengths = core_with(), OutputLengths()
    node = add(core, "a", sampling={"max_tokens": 500})
    assert lengths.expected(node) == 500
    for _ in range(20):
        lengths.observe(node, 40)
    assert lengths.expected(node) == 50
    for _ in range(100):
        lengths.observe(node, 80)
    assert lengths.expected(node) == 100


def test_the_limit_holds_whatever_was_learned() -> None:
    core, lengths = core_with(), OutputLengths()
    node = add(core, "a", sampling={"max_tokens": 10})
    lengths.observe(node, 1000)
    assert lengths.expected(node) == 10


def test_a_length_that_is_fixed_is_taken_as_it_is() -> None:
    core, lengths = core_with(), OutputLengths()
    node = add(core, "a", sampling={"max_tokens": 300, "ignore_eos": True})
    lengths.observe(node, 5)
    assert lengths.expected(node) == 300


def test_what_is_learned_is_bounded() -> None:
    core, lengths = core_with(), OutputLengths()
    node = add(core, "a", sampling={"max_tokens": 500})
    lengths.observe(node, 8)
    for n in range(MAX_FUNCTIONS):
        node.function = f"f{n}"
        lengths.observe(node, 40)
    node.function = "f"
    assert lengths.expected(node) == 500


def test_what_an_earlier_leader_learned_counts_until_something_newer_is() -> None:
    core, lengths = core_with(), OutputLengths()
    node = add(core, "a", sampling={"max_tokens": 500})
    lengths.recall(node.tenant, node.function, {node.prompt_end: 40.0})
    assert lengths.expected(node) == 50
    assert lengths.changed(10) == []
    other = OutputLengths()
    other.observe(node, 80)
    other.recall(node.tenant, node.function, {node.prompt_end: 40.0, 9: 7.0})
    assert other.expected(node) == 100
    (learned,) = other.changed(10)
    assert (learned.partition, learned.tenant, learned.function) == (node.partition, node.tenant, node.function)
    assert learned.means == {node.prompt_end: 80, 9: 7.0}


def test_what_was_learned_is_told_once() -> None:
    core, lengths = core_with(), OutputLengths()
    node = add(core, "a", sampling={"max_tokens": 500})
    for n in range(5):
        node.function = f"f{n}"
        lengths.observe(node, 8)
    assert [learned.function for learned in lengths.changed(3)] == ["f0", "f1", "f2"]
    lengths.observe(node, 8)
    assert [learned.function for learned in lengths.changed(3)] == ["f3", "f4"]
    assert lengths.changed(3) == []
