from __future__ import annotations

import dataclasses
from typing import Any

import pydantic
import pytest

import parrot_mq as P
from parrot_mq.messages import TransformKind


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "temperature=-1"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"min_tokens": 9, "max_tokens": 3}, "min_tokens \\(9\\) exceeds max_tokens"),
        ({"n": 0}, "n=0"),
        ({"n": True + 5000}, "n=5001"),
        ({"transform": str.strip}, "use strip\\(\\)"),
        ({"stop": [""]}, "stop.0=''"),
    ],
)
def test_bad_outputs_name_the_argument(options: dict[str, Any], message: str) -> None:
    with pytest.raises(P.ConfigError, match=message):
        P.output(**options)


def test_every_sampling_parameter_is_taken() -> None:
    given: dict[str, Any] = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 4,
        "min_p": 0.1,
        "max_tokens": 20,
        "min_tokens": 2,
        "stop": ("a", "b"),
        "stop_token_ids": (3,),
        "seed": 11,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "repetition_penalty": 1.1,
        "logit_bias": {5: 1.5},
        "ignore_eos": True,
    }
    assert {field.name for field in dataclasses.fields(P.SamplingParams)} == set(given)
    sampling = P.output(**given).sampling
    assert {name: getattr(sampling, name) for name in given} == given
    assert P.output(stop="END").sampling.stop == ("END",)


def test_siblings_have_seeds_of_their_own() -> None:
    spec = P.output(n=3, temperature=1.0, seed=2**63 - 2)
    assert [spec.sibling_sampling(i).seed for i in range(3)] == [2**63 - 2, 2**63 - 1, 0]
    assert P.output(n=2).sibling_sampling(1).seed is None


def test_transforms() -> None:
    assert P.strip().kind is TransformKind.STRIP
    assert P.json_field("a.0.b").argument == "a.0.b"
    assert P.regex(r"(\d+)").argument == r"(\d+)"
    with pytest.raises(P.ConfigError, match="dots"):
        P.json_field("a..b")
    with pytest.raises(P.ConfigError, match="regex"):
        P.regex("(")


def test_the_default_formatter() -> None:
    @dataclasses.dataclass
    class Point:
        x: int

    class Model(pydantic.BaseModel):
        y: int

    assert P.default_formatter("a {{b}}") == "a {{b}}"
    assert P.default_formatter(3) == "3"
    assert P.default_formatter({"k": [1, object]}).startswith('{\n  "k": [\n    1,\n    "<class')
    assert P.default_formatter(Point(4)) == '{\n  "x": 4\n}'
    assert P.default_formatter(Model(y=5)) == '{\n  "y": 5\n}'
    assert P.default_formatter((1, "é")) == '[\n  1,\n  "é"\n]'
