"""The same without asyncio: ``parrot_mq.sync`` has the same names."""

import parrot_mq.sync as P


@P.semantic_function
def translate(text: P.Input, target: str, translation: P.Output = P.output(max_tokens=24)):
    """Translate into {{target}}: {{text}}
    Translation:{{translation}}"""


with P.connect() as client, client.session(tenant="acme"):
    french = translate("The queue is empty.", target="French")
    german = translate(french, target="German")
    print("French:", french.get(timeout_s=60))
    print("German:", german.get(timeout_s=60))
