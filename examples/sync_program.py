"""The same without asyncio: ``parrot_mq.sync`` has the same names."""

import parrot_mq.sync as P


@P.semantic_function
def extend(part: P.Input, notes: P.Input, extended: P.Output = P.output(max_tokens=64)):
    """You keep the notes of a long meeting.
    Transcript:
    {{part}}
    Notes so far:
    {{notes}}
    All notes:
    {{extended}}"""


with P.connect() as client, client.session(tenant="acme"):
    morning = extend("Anna: I will send the budget report by Friday. It cannot wait.", "Nothing decided.")
    evening = extend("Ben: Fine, I promise to fix the backup plan by noon. This is urgent.", morning)
    print(f"in the morning:\n{morning.get(timeout_s=60)}")
    print(f"in the evening:\n{evening.get(timeout_s=60)}")
