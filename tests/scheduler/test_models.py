from __future__ import annotations

import gc

from parrot_mq.scheduler.models import MAX_UNKNOWN, Models
from parrot_mq.scheduler.nodes import RequestNode
from tests.scheduler.support import add, core_with, engine


def asking(name: str, model: str) -> RequestNode:
    return add(core_with(), name, model=model)


def test_a_model_is_unknown_once_the_grace_has_passed_and_then_at_once() -> None:
    models = Models(10.0)
    first, second = asking("a", "M"), asking("b", "M")
    assert not models.asked(first, 0.0)
    assert models.doomed(9.9) == []
    assert models.doomed(10.0) == [first]
    models.ended(first)
    assert models.asked(second, 11.0)
    assert models.doomed(11.0) == [second]


def test_an_engine_that_registers_in_time_saves_them() -> None:
    models = Models(10.0)
    assert not models.asked(asking("a", "M"), 0.0)
    models.registered("M")
    assert models.doomed(20.0) == []
    assert models.known == ["M"]


def test_a_model_that_turns_up_after_all_is_known_again() -> None:
    models = Models(0.0)
    models.asked(asking("a", "M"), 0.0)
    models.doomed(0.0)
    models.registered("M")
    assert not models.asked(asking("b", "M"), 1.0)


def test_any_model_is_never_unknown() -> None:
    models = Models(0.0)
    assert not models.asked(asking("a", ""), 0.0)
    assert models.doomed(1.0) == []


def test_what_ended_is_forgotten() -> None:
    models = Models(10.0)
    node = asking("a", "M")
    models.asked(node, 0.0)
    models.ended(node)
    assert models.doomed(100.0) == []
    assert not models.asked(node, 100.0)  # and the grace begins anew


def test_the_names_that_are_remembered_are_bounded() -> None:
    models = Models(0.0)
    for n in range(MAX_UNKNOWN + 1):
        node = asking("a", f"M{n}")
        models.asked(node, 0.0)
        models.doomed(0.0)
        models.ended(node)
    assert len(models._unknown) <= MAX_UNKNOWN


def test_nothing_is_left_of_requests_for_models_that_nobody_serves() -> None:
    def num_nodes() -> int:
        gc.collect()
        return sum(type(thing) is RequestNode for thing in gc.get_objects())

    before, core = num_nodes(), core_with(engine("e0"))
    for n in range(100):
        node = add(core, f"n{n}", model=f"M{n}")
        core.describe(core.learn_function((node.partition, node.tenant, node.function), None, {}), 0.0)
        core.decide(float(n))
        core.finish(node)
    del node
    assert num_nodes() == before
