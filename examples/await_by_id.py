"""One process submits, another awaits: all that travels between them is a variable's id.

python examples/await_by_id.py          submits, and starts itself again as the other process
python examples/await_by_id.py 0-v-...  awaits that variable
"""

import asyncio
import sys

import parrot_mq as P


@P.semantic_function
def note(part: P.Input, text: P.Output = P.output(max_tokens=32)):
    """You keep the notes of a long meeting.
    Transcript:
    {{part}}
    Note:
    {{text}}"""


async def submit() -> None:
    async with P.connect() as client, client.session(tenant="acme"):
        text = note("Carla: Put me down to order the museum guide by Monday. It cannot wait.")
        await text.published()  # from here on its id means something to others
        other = await asyncio.create_subprocess_exec(sys.executable, __file__, text.id)
        await other.wait()


async def await_by_id(variable_id: str) -> None:
    async with P.connect() as client:
        print("the other process got:", await client.variable(variable_id).get(timeout_s=60))


asyncio.run(await_by_id(sys.argv[1]) if len(sys.argv) > 1 else submit())
