"""A call with two outputs (the second one sees the first), a transform, and sampling."""

import asyncio

import parrot_mq as P


@P.semantic_function
def review(
    code: P.Input,
    language: str,  # neither input nor output: a Python object that is rendered into the prompt
    verdict: P.Output = P.output(max_tokens=8, transform=P.strip()),
    reason: P.Output = P.output(max_tokens=32, temperature=0.7, top_p=0.9, seed=7),
):
    """Review this {{language}} code:
    {{code}}
    Verdict:{{verdict}}
    Because:{{reason}}"""


async def main() -> None:
    async with P.connect() as client, client.session(tenant="acme"):
        verdict, reason = review("print('hello')", language="Python")
        print("verdict:", await verdict.get(timeout_s=60))
        print("reason:", await reason.get(timeout_s=60))


asyncio.run(main())
