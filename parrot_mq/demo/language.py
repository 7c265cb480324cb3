"""The closed language of the demo's meetings: its words and the forms of its lines.

The checkpoint was trained on exactly these words; another word or form means training it again.
"""

from typing import Final


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES: Final = _words(
    "Anna Ben Carla David Elena Farid Grace Hugo Ines Jonas Kira Liam Mona Nils Omar Paula "
    "Quinn Rosa Samir Tessa Uma Victor Wanda Yusuf"
)
VERBS: Final = tuple(  # base form and past tense never share a word, so a past deed is not a commitment
    pair.split("/")
    for pair in _words(
        "send/sent write/wrote review/reviewed update/updated prepare/prepared check/checked "
        "finish/finished share/shared draft/drafted publish/published present/presented print/printed "
        "test/tested order/ordered book/booked fix/fixed"
    )
)
TOPICS: Final = _words(
    "budget travel security marketing hiring launch training office supplier customer quality backup "
    "payment search mobile energy warehouse garden partner museum"
)
ARTIFACTS: Final = _words(
    "report plan slides list schedule summary contract survey proposal forecast memo brief invoice "
    "catalogue guide poster"
)
DAYS: Final = _words("Monday Tuesday Wednesday Thursday Friday Saturday noon midnight")

COMMITMENTS: Final = (
    "I will {verb} the {item} by {day}.",
    "Yes, I will {verb} the {item} by {day}.",
    "Count on me to {verb} the {item} by {day}.",
    "Put me down to {verb} the {item} by {day}.",
    "Fine, I promise to {verb} the {item} by {day}.",
)
KEY_SIGNS: Final = (
    "This is urgent.",
    "It cannot wait.",
    "The client depends on it.",
    "Nothing matters more right now.",
)
MINOR_SIGNS: Final = (
    "There is no rush.",
    "It is only a small thing.",
    "Nobody depends on it.",
    "It can slip if needed.",
)
DISTRACTORS: Final = (
    "I {past} the {item} on {day}.",
    "We {past} the {item} last {day}, remember?",
    "I will not {verb} the {item} by {day}.",
    "No, I refuse to {verb} the {item} by {day}.",
    "{name}, can you {verb} the {item} by {day}?",
    "Who is going to {verb} the {item} by {day}?",
    "I wanted to {verb} the {item} by {day}, but we dropped it.",
    "Somebody should {verb} the {item} by {day}.",
)
CHATTER: Final = (
    "I agree with {name} about the {item}.",
    "The {item} looks better than the one from {day}.",
    "If I see one more {item}, I need a holiday, {name}.",
    "Did {name} read the {item} before {day}?",
    "The {item} is on the second page, next to the coffee stain.",
    "Sorry, {name}, my line dropped when you showed the {item}.",
    "My cat walked over the {item} on {day}, so forgive the typos.",
    "Can we come back to the {item} after lunch, {name}?",
    "I like the colours of the {item}, {name} did well there.",
    "{name} and I talked about the {item} over coffee on {day}.",
    "The numbers in the {item} match what {name} told us on {day}.",
    "Let us not open the {item} again, we have no time before {day}.",
)
