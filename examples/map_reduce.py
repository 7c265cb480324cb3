"""Map-reduce: the maps become a task group, because one request reads them all."""

import asyncio

import parrot_mq as P

CHAPTERS = [f"Chapter {number}: it rained, and the parrot said something about queue {number}." for number in range(8)]


@P.semantic_function
def summarise(chapter: P.Input, summary: P.Output = P.output(max_tokens=24)):
    """You summarise books. Summarise this chapter in one sentence.
    {{chapter}}
    Summary:{{summary}}"""


@P.semantic_function
def combine(a: P.Input, b: P.Input, c: P.Input, d: P.Input, summary: P.Output = P.output(max_tokens=32)):
    """You summarise books. Combine these summaries into one.
    {{a}}
    {{b}}
    {{c}}
    {{d}}
    Summary:{{summary}}"""


async def main() -> None:
    async with P.connect() as client, client.session(tenant="acme"):
        parts = P.map(summarise, CHAPTERS)
        halves = [combine(*parts[:4]), combine(*parts[4:])]
        for text in await P.gather(*halves, perf=P.LATENCY, timeout_s=120):
            print("-", text)


asyncio.run(main())
