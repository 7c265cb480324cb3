"""Text in pieces: whole characters, no part of a stop string, together exactly the whole text."""

from __future__ import annotations

from collections.abc import Callable

import hypothesis.strategies as st
import pytest
import tokenizers
from hypothesis import given

from parrot_mq.messages import SamplingParams
from parrot_workers.engine.detokenizer import Detokenizer
from parrot_workers.engine.engine import Engine
from parrot_workers.engine.port import FinishReason, PromptSegment, SequenceInput

TEXT = "naïve 日本語 🦜🦜 end"


def decode_bytes(ids: list[int]) -> str:
    """Ids are bytes, decoded as byte-level tokenizers do."""
    return bytes(ids).decode(errors="replace")


def decode_words(ids: list[int]) -> str:
    """Ids are words behind a space; the first word's is dropped, as sentencepiece decoders do. 0 is special."""
    return "".join(f" w{i}" for i in ids if i).removeprefix(" ")


def feed(detokenizer: Detokenizer, ids: list[int]) -> list[str]:
    pieces = []
    for token_id in ids:
        pieces.append(detokenizer.append(token_id))
        if detokenizer.stopped:
            return pieces
    return [*pieces, detokenizer.flush()]


def test_characters_are_never_split() -> None:
    pieces = feed(Detokenizer(decode_bytes), list(TEXT.encode()))
    assert "".join(pieces) == TEXT
    assert not any("\ufffd" in piece for piece in pieces)
    assert "🦜" in pieces


def test_an_unfinished_character_comes_out_at_the_end() -> None:
    ids = list("ab🦜".encode())[:-1]
    pieces = feed(Detokenizer(decode_bytes), ids)
    assert pieces == ["a", "b", "", "", "", "\ufffd"]


@given(st.binary(max_size=40))
def test_any_bytes_come_out_as_they_decode(data: bytes) -> None:
    detokenizer = Detokenizer(decode_bytes)
    pieces = feed(detokenizer, list(data))
    assert "".join(pieces) == detokenizer.text == decode_bytes(list(data))
    if data:
        assert detokenizer.text_ids() == tuple(data)


@given(st.lists(st.integers(0, 3), max_size=20))
def test_decoders_that_look_back(ids: list[int]) -> None:
    detokenizer = Detokenizer(decode_words)
    assert "".join(feed(detokenizer, ids)) == detokenizer.text == decode_words(ids)


@given(st.text(alphabet="abAB", max_size=30), st.lists(st.text(alphabet="abAB", min_size=1, max_size=4), max_size=3))
def test_stop_strings_are_exact(text: str, stop: list[str]) -> None:
    detokenizer = Detokenizer(decode_bytes, tuple(stop))
    pieces = feed(detokenizer, list(text.encode()))
    ends = [(text.find(s) + len(s), text.find(s)) for s in stop if s in text]
    expected = text[: min(ends)[1]] if ends else text
    assert "".join(pieces) == detokenizer.text == expected
    assert detokenizer.stopped == bool(ends)
    assert detokenizer.text_ids() == tuple(expected.encode())


def test_what_may_become_a_stop_string_is_held_back() -> None:
    detokenizer = Detokenizer(decode_bytes, ("END.",))
    assert [detokenizer.append(b) for b in b"aEEND"] == ["a", "", "E", "", ""]
    assert detokenizer.append(ord("!")) == "END!"
    assert [detokenizer.append(b) for b in b"bEND."] == ["b", "", "", "", ""]
    assert detokenizer.stopped
    assert detokenizer.text == "aEEND!b"
    assert detokenizer.flush() == ""


def test_a_stop_string_may_end_only_after_the_minimum() -> None:
    detokenizer = Detokenizer(decode_bytes, ("xx",))
    for b in b"axxb":
        detokenizer.append(b, can_stop=False)
    assert not detokenizer.stopped
    detokenizer.append(ord("x"))
    detokenizer.append(ord("x"))
    assert detokenizer.stopped
    assert detokenizer.text == "axxb"


def test_a_stop_string_inside_a_token_leaves_no_ids() -> None:
    words = {1: "one ", 2: "two.three"}
    detokenizer = Detokenizer(lambda ids: "".join(words[i] for i in ids), (".",))
    assert feed(detokenizer, [1, 1, 2]) == ["one ", "one ", "two"]
    assert detokenizer.text_ids() == ()
    other = Detokenizer(lambda ids: "".join(words[i] for i in ids), ("two.",))
    feed(other, [1, 1, 2])
    assert other.text_ids() == (1, 1)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_pieces_of_an_engine_make_up_its_text(make_engine: Callable[..., Engine], kind: str) -> None:
    engine = make_engine(kind)
    # Only characters of several bytes, and words: what random weights say is no text.
    sampling = SamplingParams(max_tokens=40, temperature=3.0, ignore_eos=True)
    for index in range(8):
        engine.add(SequenceInput(str(index), (PromptSegment("hello"),), sampling))
    pieces: dict[str, str] = {}
    ids: dict[str, list[int]] = {}
    while engine.has_work():
        for output in engine.step():
            pieces[output.id] = pieces.get(output.id, "") + output.text
            ids.setdefault(output.id, []).extend(output.token_ids)
            if output.finish is not None:
                assert output.full_text == pieces[output.id] == engine.tokenizer.decode(ids[output.id])
                if output.full_token_ids:
                    assert list(output.full_token_ids) == ids[output.id]


def test_stop_strings_of_an_engine(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine("llama")
    sampling = SamplingParams(max_tokens=40, ignore_eos=True)
    [free] = engine.generate("hello", sampling)
    # Every string of three characters that does not come earlier, wherever the tokens' borders are.
    text = free.full_text
    starts = [i for i in range(len(text) - 3) if "\ufffd" not in text[i : i + 3] and text.find(text[i : i + 3]) == i]
    stops = [text[i : i + 3] for i in starts]
    outputs = engine.generate(
        ["hello"] * len(stops), [SamplingParams(max_tokens=40, ignore_eos=True, stop=(s,)) for s in stops]
    )
    for start, output in zip(starts, outputs, strict=True):
        assert output.finish is FinishReason.STOP
        assert output.full_text == text[:start]
        assert output.full_token_ids == () or engine.tokenizer.decode(output.full_token_ids) == text[:start]


def test_a_byte_fallback_tokenizer() -> None:
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE({f"<0x{b:02X}>": b for b in range(256)}, [], byte_fallback=True)
    )
    tokenizer.decoder = tokenizers.decoders.Sequence([tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()])
    pieces = feed(Detokenizer(tokenizer.decode), list(TEXT.encode()))
    assert "".join(pieces) == TEXT
    assert not any("\ufffd" in piece for piece in pieces)
