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
