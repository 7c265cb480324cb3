"""Functions, a graph of three requests, streaming, and ``get`` with an objective (the README's first program)."""

import asyncio

import parrot_mq as P


@P.semantic_function
def note(part: P.Input, summary: P.Output = P.output(max_tokens=64)):
    """You keep the notes of a long meeting.
    Transcript:
    {{part}}
    Note:
    {{summary}}"""


@P.semantic_function
def merge(first: P.Input, second: P.Input, notes: P.Output = P.output(max_tokens=64)):
    """You keep the notes of a long meeting.
    Partial notes:
    {{first}}
    {{second}}
    All notes:
    {{notes}}"""


async def main() -> None:
    async with P.connect() as client, client.session(tenant="acme"):
        first = note("Anna: I will send the budget report by Friday. The client depends on it.")
        second = note("Ben: Count on me to book the travel plan by noon. This is urgent.")
        notes = merge(first, second)  # nothing has been awaited yet: three requests go out as one graph
        async for piece in notes.stream():  # text as it is generated
            print(piece, end="", flush=True)
        print("\nthe first part alone:", await first.get(perf=P.LATENCY, timeout_s=60))


asyncio.run(main())
