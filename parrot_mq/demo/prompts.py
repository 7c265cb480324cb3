"""The prompt templates that the demo model was trained on.

The model knows exactly these texts: a changed character is another prompt, and the checkpoint has to be
trained again. Every constant in front of the output ends in a newline, because a trailing space would
become a token of its own. All templates begin with the same header, so that their prefix is shared.
"""

from typing import Final

MIN_REDUCE_ARITY: Final = 2
MAX_REDUCE_ARITY: Final = 8

HEADER: Final = (
    "You keep the notes of a long meeting. Only what somebody commits to is noted, "
    "and only what is important stays in the notes.\n"
)

MAP: Final = HEADER + "Transcript:\n{{chunk}}\nNote:\n{{summary}}"
"""Transcript chunk -> one line: an important item, a minor item, or that nothing was decided."""

CHAIN: Final = HEADER + "Transcript:\n{{chunk}}\nNotes so far:\n{{notes}}\nAll notes:\n{{summary}}"
"""Next chunk and notes so far -> notes. The chunk comes first, so that an engine can read all but the notes
while the previous step still writes them."""


def reduce_template(arity: int) -> str:
    """Template that merges `arity` partial notes, the inputs `notes_1` to `notes_<arity>`.

    Raises ValueError outside 2..8, the arities that the model was trained on.
    """
    if not MIN_REDUCE_ARITY <= arity <= MAX_REDUCE_ARITY:
        raise ValueError(f"a reduce merges {MIN_REDUCE_ARITY} to {MAX_REDUCE_ARITY} notes, not {arity}")
    inputs = "\n".join(f"{{{{notes_{number}}}}}" for number in range(1, arity + 1))
    return HEADER + "Partial notes:\n" + inputs + "\nAll notes:\n{{summary}}"


REDUCE: Final = {arity: reduce_template(arity) for arity in range(MIN_REDUCE_ARITY, MAX_REDUCE_ARITY + 1)}
"""The reduce template of each arity."""
