from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parrot_mq.errors import TemplateError
from parrot_mq.messages import Segment, SegmentKind
from parrot_mq.sdk.template import Placeholder, Template, spaced_outputs

C, I, O = SegmentKind.CONSTANT, SegmentKind.INPUT, SegmentKind.OUTPUT  # noqa: E741


def segments(text: str, *outputs: str) -> list[tuple[SegmentKind, str]]:
    return [(s.kind, s.text) for s in Template(text).segments(outputs)]


def test_constants_and_placeholders_alternate() -> None:
    assert segments("Write {{task}}.\nCode:{{code}}", "code") == [
        (C, "Write "),
        (I, "task"),
        (C, ".\nCode:"),
        (O, "code"),
    ]


def test_directions_and_spaces_inside_the_braces() -> None:
    (first, second) = Template("{{ input : a }}{{output:b}}").placeholders
    assert (first.name, first.direction, second.name, second.direction) == ("a", "input", "b", "output")


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("{{{{x}}", ["{{x}}"]),
        ("a }} b", ["a }} b"]),
        ('{"a": {"b": 1}}', ['{"a": {"b": 1}}']),
        ("{{{{{{x}}}}", ["{{", "x", "}}"]),
        ("{{{x}}}", ["{", "x", "}"]),
        ("{{{{{x}}", ["{{{x}}"]),
        ("", []),
        ("{", ["{"]),
    ],
)
def test_braces(text: str, pieces: list[str]) -> None:
    assert [piece.name if isinstance(piece, Placeholder) else piece for piece in Template(text).pieces] == pieces


@pytest.mark.parametrize(
    ("text", "line", "caret"),
    [
        ("one\n  two {{three", 2, 6),
        ("{{}}", 1, 0),
        ("a\n\tb {{1x}}", 2, 3),
        ("{{in put}}", 1, 0),
        ("x {{inout:y}}", 1, 2),
        ("é {{a-b}}", 1, 2),
    ],
)
def test_errors_show_the_line_and_a_caret(text: str, line: int, caret: int) -> None:
    with pytest.raises(TemplateError) as caught:
        Template(text, "write_code")
    message, shown, pointer = str(caught.value).split("\n")
    assert message.startswith(f"write_code, line {line}: ")
    assert shown == "    " + text.split("\n")[line - 1]
    assert pointer.index("^") == 4 + caret
    assert pointer.replace("^", "").isspace() or caret == 0


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(TemplateError, match="lone surrogate"):
        Template("a \ud800 b")


def test_an_output_can_be_read_back() -> None:
    assert segments("{{x}}{{a}} again {{a}} and {{input:a}}{{b}}", "a", "b") == [
        (I, "x"),
        (O, "a"),
        (C, " again "),
        (I, "a"),
        (C, " and "),
        (I, "a"),
        (O, "b"),
    ]


def test_an_output_is_not_generated_twice_nor_read_before() -> None:
    with pytest.raises(TemplateError, match="generated twice"):
        segments("{{output:a}}{{output:a}}", "a")
    with pytest.raises(TemplateError, match="before it is generated"):
        segments("{{input:a}}{{output:a}}", "a")


def test_spaced_outputs() -> None:
    template = Template("Code: {{a}}\nTest:{{b}} {{c}}{{d}}")
    assert spaced_outputs(template.segments(["a", "b", "c", "d"])) == ("a", "c")


literal = st.text(alphabet=st.one_of(st.sampled_from("{}x \n:"), st.characters(exclude_categories=["Cs"])), max_size=20)
names = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)


def written(text: str) -> str:
    """``text`` as a template says it: every second brace of a pair is escaped with its pair."""
    return text.replace("{{", "{{{{")


@given(st.lists(st.tuples(literal, names), max_size=6), literal)
def test_what_is_written_is_what_is_parsed(parts: list[tuple[str, str]], tail: str) -> None:
    # A literal that ends in a brace would join the braces of the placeholder after it.
    texts = [text.rstrip("{") for text, _ in parts]
    source = "".join(written(text) + "{{" + name + "}}" for text, (_, name) in zip(texts, parts, strict=True))
    expected: list[str | tuple[str]] = []
    for text, (_, name) in zip(texts, parts, strict=True):
        expected += [text, (name,)] if text else [(name,)]
    source += written(tail)
    expected += [tail] if tail else []
    found = [(piece.name,) if isinstance(piece, Placeholder) else piece for piece in Template(source).pieces]
    assert found == expected


@given(st.text(alphabet="{}ab: \nio", max_size=40))
def test_every_text_parses_or_says_where_it_does_not(text: str) -> None:
    try:
        template = Template(text, "f")
    except TemplateError as error:
        message = str(error)
    else:
        message = ""
    if message:
        assert "line " in message
        assert "^" in message
        return
    for placeholder in template.placeholders:
        assert text.startswith("{{", placeholder.position)
    constants = [piece for piece in template.pieces if isinstance(piece, str)]
    assert all(constants)
    assert [Segment(C, c) for c in constants] == [s for s in template.segments([]) if s.kind is C]
