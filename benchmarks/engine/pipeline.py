"""``python -m benchmarks.engine.pipeline``: the whole of parrot_mq beside vLLM's HTTP server, taking turns.

Both serve the same model on the same cores and get the same texts at once; both stream. Both servers stay up while the
other is asked, and rest before that: vLLM's worker polls for work for a second after its last, at the cost of a core.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import time
from collections import defaultdict
from pathlib import Path

import tokenizers

from benchmarks.engine.driver import model_folder
from benchmarks.engine.figures import Row, RunFigures, merge, summary, table
from benchmarks.engine.pipeline_servers import Answer, Server, parrot_server, vllm_server
from benchmarks.engine.process import SystemFailed
from benchmarks.engine.shapes import SHAPES
from benchmarks.engine.workload import WORKLOADS, Case, requests_of

CONCURRENCIES = (8, 32)
REST_S = 2.0
"""Before each run: a server that was just asked spins for a while before it sleeps."""


async def run(server: Server, prefix: str, own: list[str], num_tokens: int) -> RunFigures:
    """Ask everything at once, the prefix being known. Raises SystemFailed if a length is wrong."""
    await (await server.ask(prefix, "", 2)).num_tokens
    start_s = time.perf_counter()
    answers: list[Answer] = await asyncio.gather(*(server.ask(prefix, text, num_tokens) for text in own))
    wall_s = time.perf_counter() - start_s
    lengths = {await answer.num_tokens for answer in answers}
    if lengths != {num_tokens}:
        raise SystemFailed(f"{sorted(lengths)} tokens were generated, not {num_tokens}")
    return RunFigures.of(
        {
            "wall_s": wall_s,
            "ttft_s": [answer.first_s for answer in answers],
            "decode_tokens_per_s": None,
            "outputs": [range(num_tokens)] * len(answers),
        }
    )


async def measure(model: str, dtype: str, rounds: int, num_threads: int) -> list[Row]:
    folder = model_folder(model, dtype)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    runs: defaultdict[tuple[str, int], list[RunFigures]] = defaultdict(list)
    async with contextlib.AsyncExitStack() as stack:
        servers = {
            "parrot_mq": await stack.enter_async_context(parrot_server(folder, dtype, num_threads)),
            "vllm_cpu": await stack.enter_async_context(vllm_server(folder, dtype)),
        }
        for number in range(-1, rounds):  # the first one is not counted
            for concurrency in CONCURRENCIES:
                asked = requests_of(Case(WORKLOADS["shared"], concurrency), SHAPES[model].vocab_size, f"text {number}")
                prefix = tokenizer.decode(asked.prefix)
                own = [tokenizer.decode(prompt[len(asked.prefix) :]) for prompt in asked.prompts]
                for name in sorted(servers, reverse=bool(number % 2)):
                    await asyncio.sleep(REST_S)
                    figures = await run(servers[name], prefix, own, asked.num_tokens)
                    print(f"round {number + 1}: {name} {concurrency}: {figures}", file=sys.stderr, flush=True)
                    if number >= 0:
                        runs[name, concurrency].append(figures)
    return [
        {"system": name, "model": model, "dtype": dtype, "workload": "shared", "batch": concurrency}
        | summary(figures)
        | {"date": time.strftime("%Y-%m-%d")}
        for (name, concurrency), figures in runs.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine.pipeline", description=__doc__)
    parser.add_argument("--model", choices=SHAPES, default="s")
    parser.add_argument("--dtype", choices=("bf16", "f32"), default="bf16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--num-threads", type=int, default=len(os.sched_getaffinity(0)), help="of our engine; vLLM has all"
    )
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = asyncio.run(measure(args.model, args.dtype, args.rounds, args.num_threads))
    if args.out:
        merge(args.out, rows)
    print(table(rows))


if __name__ == "__main__":
    main()
