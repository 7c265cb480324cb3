"""Equal calls from the submit to the value: client's store, scheduler, worker, engine; lanes and dispatches."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from parrot_mq.scheduler import Scheduler
from parrot_mq.settings import SchedulerSettings


async def ask_together(desk: Any, count: int) -> list[Any]:
    """Submit equal requests in one call, as an application does that makes them between two awaits."""
    made = [desk._make("Tell", sampling={"max_tokens": 12}) for _ in range(count)]
    await desk.producer.open_session(desk.session, desk.tenant)
    requests = [(spec, spec.inputs(function)) for _, function, _, spec in made]
    variables = [variable for _, _, new, _ in made for variable in new]
    await desk.producer.submit(desk.session, "batch", [made[0][1]], variables, requests, last=True)
    return [asked for asked, _, _, _ in made]


@pytest.mark.parametrize("count", [4, 10])
@pytest.mark.parametrize("lane_credits", [0, 8])
@pytest.mark.parametrize("single_flight", [True, False])
async def test_equal_calls_to_an_idle_engine_run_once_unless_it_is_switched_off(
    desk: Any,
    open_store: Any,
    working: Any,
    gated: Any,
    eventually: Any,
    count: int,
    lane_credits: int,
    single_flight: bool,
) -> None:
    engine = gated()
    settings = SchedulerSettings(engine_poll_s=0.05, lane_credits=lane_credits, single_flight=single_flight)
    async with working(open_store, lambda: engine) as worker, await open_store() as store:
        scheduler = Scheduler(store, settings)
        task = asyncio.create_task(scheduler.run())
        try:
            await asyncio.wait_for(scheduler.leading.wait(), 30)
            if lane_credits:
                key = f"{desk.store.partition(0).keys.prefix}lanes"

                async def granted() -> bool:
                    return bool(await desk.store.client.exists(key))

                await eventually(granted)
            asked = await ask_together(desk, count)
            for one in asked:
                await desk.until(one, "running")
            engine.permit()
            assert len({await desk.value(one) for one in asked}) == 1
        finally:
            scheduler.stop()
            await task
        assert len(engine.added) == (1 if single_flight else count)
        assert engine.stats().num_generated_tokens == 12 * len(engine.added)
        shared = [orjson.loads((await desk.request(one)).usage_json)["shared"] for one in asked]
        assert sum(shared) == (count - 1 if single_flight else 0)
        assert len(worker._runner.table) == 0
