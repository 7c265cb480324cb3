"""``python -m benchmarks.store [--json]``: calls, median and longest time of each script at the sizes we promise.

10,000 requests in one submit, a chain of 1,000, fan-ins of 1,000, a fan-out of 10,000; the same cancelled, broken at
their head and deleted; 128 outputs streamed; an engine that dies with hundreds of requests. No call should hold
Redis for 10 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

import orjson

import parrot_mq as P
from benchmarks.store.meter import Meter
from benchmarks.store.work import lose_engine, run_graphs, serving, stream_outputs
from parrot_mq.store import connect
from parrot_mq.store.server import RedisServer


async def measure(url: str) -> Meter:
    """Run everything on the empty Redis at ``url``."""
    meter, began = Meter(), time.monotonic()

    def on_scenario(name: str) -> None:
        meter.scenario = name
        print(f"{time.monotonic() - began:6.1f} s  {name}", file=sys.stderr)

    with meter.watching():
        async with await connect(url) as store, P.connect(store=store) as client:
            async with serving(lambda: connect(url)):
                await run_graphs(client, on_scenario)
            await stream_outputs(client, store, on_scenario)
            await lose_engine(client, store, on_scenario)
    return meter


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.store", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--redis-url", default="", help="an EMPTY Redis to use; default: a private one")
    args = parser.parse_args()
    if args.redis_url:
        meter = asyncio.run(measure(args.redis_url))
    else:
        with tempfile.TemporaryDirectory() as folder, RedisServer(Path(folder)) as server:
            meter = asyncio.run(measure(server.url))
    figures = meter.figures()
    if args.json:
        print(orjson.dumps(figures).decode())
        return
    print(f"{'script':18}{'calls':>8}{'p50 ms':>10}{'max ms':>10}  in")
    for name, row in figures.items():
        print(f"{name:18}{row['calls']:8.0f}{row['p50_ms']:10.3f}{row['max_ms']:10.3f}  {meter.longest[name][1]}")


if __name__ == "__main__":
    main()
