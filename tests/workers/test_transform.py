"""Transforms: from raw output to a value."""

from __future__ import annotations

import pytest

from parrot_mq.errors import TransformFailed
from parrot_mq.messages import Transform, TransformKind
from parrot_workers.worker.transform import apply_transform

JSON, REGEX, STRIP = TransformKind.JSON_FIELD, TransformKind.REGEX, TransformKind.STRIP


@pytest.mark.parametrize(
    ("kind", "argument", "text", "value"),
    [
        (STRIP, "", " \n a b \t", "a b"),
        (JSON, "a", '{"a": "text"}', "text"),
        (JSON, "a.b", '{"a": {"b": {"c": "é"}}}', '{"c": "é"}'),
        (JSON, "1", "[1, null]", "null"),
        (JSON, "", 'x {"a": true} y', '{"a": true}'),
        (JSON, "a", 'Here {it} is:\n```json\n{"a": 1.5}\n```', "1.5"),
        (REGEX, r"\d+", "in 42 days", "42"),
        (REGEX, r"<(\w*)>", "an <empty> or <>", "empty"),
        (REGEX, r"<(\w*)>", "<>", ""),
    ],
)
def test_values(kind: TransformKind, argument: str, text: str, value: str) -> None:
    assert apply_transform(Transform(kind, argument), text) == value


@pytest.mark.parametrize(
    ("kind", "argument", "text", "message"),
    [
        (JSON, "a", "no json", "no JSON object or list"),
        (JSON, "a", '{"a": tru', "no JSON object or list"),
        (JSON, "a.b", '{"a": "text"}', "nothing at 'b'"),
        (JSON, "a.x", '{"a": [1]}', "nothing at 'x'"),
        (JSON, "a.5", '{"a": [1]}', "nothing at '5'"),
        (JSON, "a", "[" * 100_000, "no JSON object or list"),
        (REGEX, r"\d+", "none", "does not match the output: 'none'"),
        (REGEX, r"(a)|b", "b", "does not match"),
        (REGEX, r"(", "x", "no regular expression"),
        (REGEX, r"(a|aa)+$", "a" * 100 + "b", "takes too long"),
        (REGEX, r"(" * 500, "x", "no regular expression"),
        (REGEX, r"\d", "x" * 500, "…"),
    ],
)
def test_mismatches_name_what_is_missing(kind: TransformKind, argument: str, text: str, message: str) -> None:
    with pytest.raises(TransformFailed) as raised:
        apply_transform(Transform(kind, argument), text)
    assert message in str(raised.value)
    assert len(str(raised.value)) < 300
