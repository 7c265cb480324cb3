"""Images of objects: what goes in comes out, with what refers to what, and nothing else goes in."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections import OrderedDict, deque
from typing import Any

import orjson
import pytest

from parrot_mq.messages import CostModel, EngineRecord, RequestState
from parrot_mq.scheduler.image import Unfit, Whole, class_of, name_of, restore
from parrot_mq.scheduler.nodes import TaskGroup, VariableNode


def again(value: Any) -> Any:
    """Return what comes of writing ``value`` down and reading it."""
    return restore(orjson.loads(orjson.dumps(Whole.of(value))))


def test_containers_and_plain_values_keep_their_kind_and_order() -> None:
    value = {
        "numbers": [1, -0.0, 0.1, math.inf, -math.inf, 2**53 + 1, True, None],
        "text": ("ä\n", b"\x00\xff", RequestState.READY),
        ("a", 1): OrderedDict([("b", 1), ("a", 2)]),
        3: deque([1, 2], maxlen=7),
        "sets": [{1, 2}, frozenset({"x"})],
    }
    found = again(value)
    assert found == value
    assert list(map(repr, found["numbers"])) == list(map(repr, value["numbers"]))
    assert [type(item) for item in found.values()] == [type(item) for item in value.values()]
    assert list(found[("a", 1)]) == ["b", "a"]
    assert found[3].maxlen == 7
    assert math.isnan(again([math.nan])[0])


def test_what_stands_in_two_places_is_one_thing_again() -> None:
    group = TaskGroup("g")
    variable = VariableNode("0-v-a")
    variable.consumers["self"] = variable  # type: ignore[assignment]
    counter = itertools.count(5)
    found = again([group, {group: variable}, variable, counter, group.earlier])
    assert found[1][found[0]] is found[2]
    assert found[2].consumers["self"] is found[2]
    assert next(found[3]) == next(counter) == 5
    assert found[4]() is found[0].earlier()
    assert found[0].earlier().id == "g~1"


def test_frozen_records_are_equal_again() -> None:
    record = EngineRecord("e0", "sim", "m", cost=CostModel(0.1, 2.0), resident=("a", "b"))
    assert again({record: 1}) == {record: 1}


@pytest.mark.parametrize("value", [object(), asyncio.Event, TaskGroup, lambda: 0, asyncio.Event()])
def test_what_is_not_ours_is_refused(value: object) -> None:
    with pytest.raises(Unfit, match="is no class of this project"):
        Whole.of([value])


@pytest.mark.parametrize("name", ["scheduler.replay:Path", "scheduler.replay:replay", "keys:LEADER"])
def test_an_image_names_our_classes_alone(name: str) -> None:
    with pytest.raises(Unfit, match="no class of this project"):
        class_of(name)
    with pytest.raises(Unfit, match="no class of this project"):
        restore({"root": {"at": 0}, "parts": [{"object": name, "has": {}}]})
    assert class_of(name_of(TaskGroup)) is TaskGroup
