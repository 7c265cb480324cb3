"""The same seed is the same run: in every process, whatever Python's hash seed and the addresses of objects are."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import asyncio, sys
sys.path[:0] = [".", "workers", "kernels"]
import parrot_mq as P
from parrot_workers.simulation import EngineSetup, Loss, load_profile, simulate

@P.semantic_function
def tell(topic: P.Input, story: P.Output = P.output(max_tokens=12, ignore_eos=True)):
    "Tell a story about {{topic}}:{{story}}"

async def main(world):
    world.traffic.losses[150] = Loss.REPLY
    world.traffic.actions[260] = lambda: world.kill_engine("engine-1")
    said = []
    async def user(number):
        await asyncio.sleep(world.random.random())
        async with world.client.session() as session:
            stories = P.map(tell, [f"{number} and {other}" for other in range(3)])
            again = tell(stories[1])
            said.append("".join([piece async for piece in again.stream()]))
            said.append(await P.gather(stories))
            said.append(world.now_s())
    async with asyncio.TaskGroup() as group:
        for number in range(12):
            group.create_task(user(number))
    events = await world.client.store.client.xrange("pmq:{p0}:events")
    return said, events, world.traffic.num_commands, [engine.totals for engine in world.engines]

print(simulate(main, [EngineSetup(load_profile("a100-7b"), count=3)], seed=7))
"""


def test_every_process_runs_the_same_simulation() -> None:
    told = [
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", SCRIPT],
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "4711")
    ]
    assert len(told[0]) > 1000
    assert told[0] == told[1] == told[2]
