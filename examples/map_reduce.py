"""Map-reduce: the maps become a task group, because requests read them all."""

import asyncio

import parrot_mq as P

PARTS = [
    "Anna: I will send the budget report by Friday. The client depends on it.",
    "Ben: Count on me to book the travel plan by noon. This is urgent.",
    "Carla: Put me down to write the hiring memo by Monday. It cannot wait.",
    "David: I will print the museum guide by Saturday. There is no rush.",
    "Elena: Fine, I promise to fix the backup contract by Tuesday. Nothing matters more right now.",
    "Farid: Yes, I will order the office list by midnight. This is urgent.",
    "Grace: Who is going to test the payment forecast by Thursday?",
    "Hugo: I will prepare the launch slides by Wednesday. The client depends on it.",
]


@P.semantic_function
def note(part: P.Input, summary: P.Output = P.output(max_tokens=32)):
    """You keep the notes of a long meeting. Only what somebody commits to is noted,
    and only what is important stays in the notes.
    Transcript:
    {{part}}
    Note:
    {{summary}}"""


@P.semantic_function
def merge(a: P.Input, b: P.Input, c: P.Input, d: P.Input, notes: P.Output = P.output(max_tokens=128)):
    """You keep the notes of a long meeting. Only what somebody commits to is noted,
    and only what is important stays in the notes.
    Partial notes:
    {{a}}
    {{b}}
    {{c}}
    {{d}}
    All notes:
    {{notes}}"""


async def main() -> None:
    async with P.connect() as client, client.session(tenant="acme"):
        notes = P.map(note, PARTS)
        halves = [merge(*notes[:4]), merge(*notes[4:])]
        for number, text in enumerate(await P.gather(*halves, perf=P.LATENCY, timeout_s=120), 1):
            print(f"half {number}:\n{text}")


asyncio.run(main())
