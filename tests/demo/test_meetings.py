"""Generated meetings: the same on every machine, shaped as promised, with notes that can be derived by hand."""

import hashlib
import re

import pytest

from parrot_mq.demo.language import CHATTER, COMMITMENTS, KEY_SIGNS, MINOR_SIGNS, NAMES, VERBS
from parrot_mq.demo.meetings import (
    LINES_PER_CHUNK,
    MAX_CHUNK_CHARS,
    MAX_KEY_ITEMS,
    MIN_KEY_ITEMS,
    NOTHING,
    NUM_CHUNKS,
    Dice,
    chunks_of,
    demo_stream,
    extend_notes,
    make_meeting,
    merge_notes,
    training_stream,
)
from parrot_mq.demo.prompts import CHAIN, HEADER, MAP, REDUCE, reduce_template

SEEDS = range(40)
GOLDEN_DIGEST = "8f3923652b8ce5c3"
SPOKEN = re.compile(r"(\w+): (?:I will|Yes, I will|Count on me to|Put me down to|Fine, I promise to) (?!not )(.+)")


def notes_by_hand(chunk: str) -> list[str]:
    """A second reader, written against the text instead of the generator's records."""
    found = []
    for line in chunk.split("\n"):
        if match := SPOKEN.fullmatch(line):
            name, said = match.groups()
            deed, sign = said.split(". ", 1)
            found.append(f"- {name} will {deed}." if sign in KEY_SIGNS else f"({name} will {deed}.)")
    return found


def test_a_seed_gives_the_same_meeting_everywhere() -> None:
    meeting = make_meeting(7)
    text = meeting.transcript + "\n\n" + meeting.expected_notes
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == GOLDEN_DIGEST
    assert make_meeting(7) == meeting


def test_seeds_give_different_meetings() -> None:
    assert len({make_meeting(seed).transcript for seed in SEEDS}) == len(SEEDS)


@pytest.mark.parametrize("seed", SEEDS)
def test_structure(seed: int) -> None:
    meeting = make_meeting(seed)
    assert len(meeting.chunks) == NUM_CHUNKS
    for chunk in meeting.chunks:
        lines = chunk.split("\n")
        assert len(lines) == LINES_PER_CHUNK
        assert len(chunk) <= MAX_CHUNK_CHARS
        assert all(line.split(": ", 1)[0] in NAMES for line in lines)
    notes = meeting.expected_notes.split("\n")
    assert MIN_KEY_ITEMS <= len(notes) <= MAX_KEY_ITEMS
    assert len({note.split(" ")[1] for note in notes}) == len(notes), "each speaker makes one important promise"


@pytest.mark.parametrize("seed", SEEDS)
def test_expected_lines_follow_from_the_text(seed: int) -> None:
    meeting = make_meeting(seed)
    for chunk, expected in zip(meeting.chunks, meeting.expected_lines, strict=True):
        found = notes_by_hand(chunk)
        assert len(found) <= 1
        assert expected == (found[0] if found else NOTHING)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_chain_and_any_tree_end_in_the_same_notes(seed: int) -> None:
    meeting = make_meeting(seed)
    notes = NOTHING
    for line in meeting.expected_lines:
        notes = extend_notes(notes, line)
    assert notes == meeting.expected_notes
    for arity in (2, 5, 8):
        level = list(meeting.expected_lines)
        while len(level) > 1:
            level = [merge_notes(level[start : start + arity]) for start in range(0, len(level), arity)]
        assert level == [meeting.expected_notes]


def test_merge_keeps_important_items_in_order() -> None:
    assert merge_notes([NOTHING, "- B will x.", "(C will y.)", "- A will z.\n- D will w."]) == (
        "- B will x.\n- A will z.\n- D will w."
    )
    assert merge_notes([NOTHING, "(C will y.)"]) == NOTHING
    assert extend_notes(NOTHING, NOTHING) == NOTHING


@pytest.mark.parametrize("num_chunks", [0, 1, 3, 7, 300])
def test_other_lengths(num_chunks: int) -> None:
    meeting = make_meeting(5, num_chunks)
    assert len(meeting.chunks) == num_chunks
    assert chunks_of(meeting.transcript) == list(meeting.chunks)


def test_training_never_sees_a_demo_stream() -> None:
    demo = {demo_stream(seed) for seed in range(1000)}
    training = {training_stream(index) for index in range(1000)}
    assert not demo & training
    assert {stream % 2 for stream in demo} == {1}
    assert {stream % 2 for stream in training} == {0}
    for stream in (demo_stream, training_stream):
        with pytest.raises(ValueError, match="zero or more"):
            stream(-1)


def test_past_deeds_and_signs_cannot_be_mistaken() -> None:
    assert not {base for base, _ in VERBS} & {past for _, past in VERBS}
    assert not set(KEY_SIGNS) & set(MINOR_SIGNS)
    assert not any(form.split(" {")[0] in text for form in COMMITMENTS for text in CHATTER)


def test_dice_cover_their_range() -> None:
    dice = Dice(3)
    assert {dice.between(2, 4) for _ in range(100)} == {2, 3, 4}
    assert sorted(dice.sample(range(5), 5)) == [0, 1, 2, 3, 4]
    assert [Dice(1).below(1000) for _ in range(2)] == [134, 134]


@pytest.mark.parametrize("seed", SEEDS)
def test_chunker_finds_the_chunks_of_a_transcript(seed: int) -> None:
    meeting = make_meeting(seed)
    assert chunks_of(meeting.transcript) == list(meeting.chunks)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n \n\t\n",
        "one line",
        "two\r\nlines\r\n",
        "word " * 900,
        "x" * 5000,
        "x" * 1000 + "\n" + "y" * 1001,
        "ein Satz mit Umlauten: äöü, 東京 и ещё\n" * 40,
        "long first line " * 80 + "\nshort\n" * 15,
    ],
)
@pytest.mark.parametrize("max_chars", [1, 7, 100, 1000])
def test_chunker_takes_any_text(text: str, max_chars: int) -> None:
    chunks = chunks_of(text, max_lines=6, max_chars=max_chars)
    assert all(0 < len(chunk) <= max_chars and chunk.count("\n") < 6 for chunk in chunks)
    assert "".join("".join(chunks).split()) == "".join(text.split()), "no character but white space is lost"


def test_chunker_refuses_empty_chunks() -> None:
    for limits in ({"max_lines": 0}, {"max_chars": 0}):
        with pytest.raises(ValueError, match="at least one"):
            chunks_of("text", **limits)


def test_prompts_share_their_header_and_end_in_the_output() -> None:
    for template in (MAP, CHAIN, *REDUCE.values()):
        assert template.startswith(HEADER)
        assert template.endswith("\n{{summary}}")
        assert template == template.strip()
    assert MAP.count("{{") == 2
    assert CHAIN.count("{{") == 3
    assert all(template.count("{{") == arity + 1 for arity, template in REDUCE.items())


@pytest.mark.parametrize("arity", [-1, 0, 1, 9])
def test_reduce_has_trained_arities_only(arity: int) -> None:
    with pytest.raises(ValueError, match="2 to 8"):
        reduce_template(arity)
