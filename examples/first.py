"""Functions, a graph of three requests, streaming, and ``get`` with an objective (the README's first program)."""

import asyncio

import parrot_mq as P


@P.semantic_function
def minutes_of(chunk: P.Input, summary: P.Output = P.output(max_tokens=64)):
    """Part of a meeting:
    {{chunk}}
    In one line:{{summary}}"""


@P.semantic_function
def merged(first: P.Input, second: P.Input, notes: P.Output = P.output(max_tokens=64)):
    """Join these notes:
    {{first}}
    {{second}}
    Notes:{{notes}}"""


async def main() -> None:
    async with P.connect() as client, client.session(tenant="acme"):
        first, second = minutes_of("Ada: I will send the draft on Friday."), minutes_of("Bob: Fine with me.")
        notes = merged(first, second)  # nothing has been awaited yet: three requests go out as one graph
        async for piece in notes.stream():  # text as it is generated
            print(piece, end="", flush=True)
        print("\n", await first.get(perf=P.LATENCY, timeout_s=60), sep="")


asyncio.run(main())
