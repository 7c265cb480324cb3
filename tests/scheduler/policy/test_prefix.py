from __future__ import annotations

from typing import Any

from parrot_mq.messages import RequestState, Segment, SegmentKind
from parrot_mq.scheduler.graph import Graph
from parrot_mq.scheduler.nodes import Arrival, RequestNode
from parrot_mq.scheduler.policy import Template, boundaries, prompt_tokens
from parrot_mq.scheduler.policy.prefix import MAX_BOUNDARIES, text_digest
from parrot_mq.settings import StoreSettings
from parrot_mq.store import encode_value
from tests.scheduler.support import spec_of

SYSTEM = "You are a careful assistant. "


def template(*parts: tuple[SegmentKind, str], tenant: str = "acme") -> Template:
    return Template.compile(tenant, [Segment(kind, text) for kind, text in parts])


def constant(text: str) -> tuple[SegmentKind, str]:
    return SegmentKind.CONSTANT, text


def placeholder(name: str) -> tuple[SegmentKind, str]:
    return SegmentKind.INPUT, name


def node(values: dict[str, str | None], **fields: Any) -> RequestNode:
    """Make a request whose inputs a, b, ... have ``values`` (None: pending)."""
    graph = Graph()
    spec = spec_of("x", values, prompt_end=9, **fields)
    spec["bindings"] = {name: {"variable": f"0-v-{name}"} for name in values}
    made = graph.add(spec, Arrival("acme", "", 0), 1, RequestState.READY)
    assert made is not None
    for name, value in values.items():
        if value is not None:
            graph.resolve(f"0-v-{name}", text_digest(value.encode()), len(value.encode()))
    return made


CHAT = (constant(SYSTEM), placeholder("a"), constant(" Now: "), placeholder("b"))


def test_there_is_one_boundary_for_each_segment_with_growing_token_counts() -> None:
    found = boundaries(template(*CHAT), node({"a": "x" * 40, "b": "y" * 80}))
    assert len({digest for digest, _ in found}) == 4
    assert [tokens for _, tokens in found] == [8, 18, 20, 40]


def test_equal_beginnings_have_equal_digests_and_then_part() -> None:
    one = boundaries(template(*CHAT), node({"a": "same", "b": "one"}))
    two = boundaries(template(*CHAT), node({"a": "same", "b": "two"}))
    assert [a == b for a, b in zip(one, two, strict=True)] == [True, True, True, False]


def test_other_functions_with_the_same_beginning_share_it() -> None:
    other = template(constant(SYSTEM), placeholder("a"), constant(" Summarise: "))
    one = boundaries(template(*CHAT), node({"a": "same", "b": "one"}))
    two = boundaries(other, node({"a": "same"}))
    assert one[:2] == two[:2]
    assert one[2] != two[2]


def test_a_pending_input_ends_the_boundaries_until_it_is_resolved() -> None:
    waiting = node({"a": None, "b": "known"})
    assert len(boundaries(template(*CHAT), waiting)) == 1
    waiting.inputs[0].resolved, waiting.inputs[0].digest = True, text_digest(b"now")
    assert len(boundaries(template(*CHAT), waiting)) == 4


def test_tenants_never_share_a_digest() -> None:
    request = node({"a": "same", "b": "same"})
    one = {digest for digest, _ in boundaries(template(*CHAT), request)}
    two = {digest for digest, _ in boundaries(template(*CHAT, tenant="other"), request)}
    assert not one & two


def test_a_text_argument_is_a_value_of_the_same_text() -> None:
    variable = node({"a": "same", "b": "same"})
    text = node({"a": "same", "b": "same"})
    text.bindings["b"] = {"text": "same"}
    assert boundaries(template(*CHAT), variable) == boundaries(template(*CHAT), text)


def test_where_text_is_cut_matters() -> None:
    joined = boundaries(template(placeholder("a"), placeholder("b")), node({"a": "ab", "b": "c"}))
    other = boundaries(template(placeholder("a"), placeholder("b")), node({"a": "a", "b": "bc"}))
    assert joined[-1] != other[-1]


def test_a_raw_text_is_not_the_transformed_one() -> None:
    plain = boundaries(template(*CHAT), node({"a": "same", "b": "x"}))
    raw = boundaries(template(*CHAT), node({"a": "same", "b": "x"}, raw_inputs=["0-v-a"]))
    assert plain[0] == raw[0]
    assert plain[1] != raw[1]


def test_the_number_of_boundaries_is_bounded_and_the_whole_prompt_is_one() -> None:
    names = [f"n{i}" for i in range(MAX_BOUNDARIES + 4)]
    request = node(dict.fromkeys(names, "v"))
    request.prompt_end = len(names)
    found = boundaries(template(*(placeholder(name) for name in names)), request)
    assert len(found) == MAX_BOUNDARIES
    assert found[-1][1] == len(names)


def test_digests_of_values_are_the_stores() -> None:
    assert text_digest("Grüße".encode()) == encode_value("Grüße", StoreSettings(), "").digest


def test_prompt_tokens_count_constants_once_the_template_is_known() -> None:
    request = node({"a": "x" * 40, "b": "y" * 40})
    assert prompt_tokens(None, request) == 20
    assert prompt_tokens(template(*CHAT), request) == 20 + 8 + 2


def test_text_counts_by_its_bytes_as_the_boundaries_count_it() -> None:
    chat, request = template(*CHAT), node({"b": None})
    request.bindings |= {"a": {"text": "ü" * 40}, "b": {"text": "ß" * 8}}
    assert prompt_tokens(chat, request) == boundaries(chat, request)[-1][1] == 8 + 20 + 2 + 4
