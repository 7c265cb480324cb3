"""What the leader has learned of functions is kept with their templates."""

from __future__ import annotations

import pytest

from parrot_mq.errors import Fenced
from parrot_mq.messages import LengthHistogram
from parrot_mq.store.scheduler import SchedulerStore
from tests.store.lab import FUNCTION, Lab


async def test_lengths_are_kept_with_the_template(lab: Lab) -> None:
    await lab.one(await lab.session())
    assert await lab.scheduler.template("acme", FUNCTION.digest) == (FUNCTION, {})
    lengths = {2: LengthHistogram(9, 41.5, ((20, 1.25), (21, 6.0))), 4: LengthHistogram(1, 7.0, ((11, 1.0),))}
    assert await lab.scheduler.learn({("acme", FUNCTION.digest): lengths}) == 1
    assert await lab.scheduler.template("acme", FUNCTION.digest) == (FUNCTION, lengths)
    assert await lab.engine.function("acme", FUNCTION.digest) == FUNCTION


async def test_the_means_of_an_earlier_version_are_read(lab: Lab) -> None:
    await lab.one(await lab.session())
    await lab.redis.hset(lab.keys.function("acme", FUNCTION.digest), "output_tokens", '{"2":41.5}')
    _, lengths = await lab.scheduler.template("acme", FUNCTION.digest)
    assert lengths == {2: LengthHistogram.from_data(41.5)}


async def test_functions_that_are_not_here_are_passed_over(lab: Lab) -> None:
    assert await lab.scheduler.learn({("acme", "nobody"): {1: LengthHistogram().observed(2)}}) == 0
    assert await lab.scheduler.template("acme", "nobody") == (None, {})
    assert await lab.redis.keys("*nobody*") == []


async def test_a_former_leader_teaches_nothing(lab: Lab) -> None:
    await lab.one(await lab.session())
    await lab.scheduler.raise_epoch(3)
    with pytest.raises(Fenced, match="epoch"):
        await SchedulerStore(lab.partition, 2).learn({("acme", FUNCTION.digest): {2: LengthHistogram().observed(1)}})
