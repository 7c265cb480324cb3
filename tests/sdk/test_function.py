from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import pytest

import parrot_mq as P
from parrot_mq.messages import SegmentKind
from parrot_mq.sdk.function import SemanticFunction
from parrot_mq.sdk.signature import Role


def function(source: str, signature: str, **options: Any) -> SemanticFunction[..., Any]:
    """Define ``f(signature)`` with the docstring ``source``."""
    namespace: dict[str, Any] = {"P": P}
    exec(f"def f({signature}):\n    ...\n", namespace)
    namespace["f"].__doc__ = source
    return P.SemanticFunction(namespace["f"], **options)


def roles(f: SemanticFunction[..., Any]) -> dict[str, Role]:
    return {parameter.name: parameter.role for parameter in f._plan.parameters}


def test_the_signature_gives_the_directions() -> None:
    f = function("{{a}} {{b}}:{{c}}", "a: P.Input, b: str, c: P.Output = P.output(max_tokens=7)")
    assert roles(f) == {"a": Role.INPUT, "b": Role.OBJECT, "c": Role.OUTPUT}
    assert f.inputs == ("a",)
    assert f.outputs == ("c",)
    assert f._plan.outputs[0].spec.sampling.max_tokens == 7


def test_both_output_spellings_run() -> None:
    @P.semantic_function
    def first(a: P.Input, b: P.Output(max_tokens=9)):  # type: ignore[valid-type, no-untyped-def]
        """{{a}}:{{b}}"""

    @P.semantic_function
    def second(a: P.Input, b: P.Output = P.output(max_tokens=9)) -> None:
        """{{a}}:{{b}}"""

    assert first._plan.outputs[0].spec.sampling == second._plan.outputs[0].spec.sampling
    assert first.digest == second.digest


def test_the_text_gives_the_directions_of_semantic_variables() -> None:
    f = function("{{input:a}}:{{output:b}}{{output:c}}", "a: P.SemanticVariable, b: P.SemanticVariable")
    assert roles(f) == {"a": Role.INPUT, "b": Role.OUTPUT}
    assert f.outputs == ("b", "c")


def test_docstrings_are_dedented() -> None:
    @P.semantic_function
    def f(a: P.Input, b: P.Output) -> None:
        """First
        second {{a}}
          third:{{b}}
        """

    assert [s.text for s in f._plan.record.segments] == ["First\nsecond ", "a", "\n  third:", "b"]
    assert f.__name__ == "f"
    assert "second" in (f.__doc__ or "")


@pytest.mark.parametrize(
    ("source", "signature", "message"),
    [
        ("{{a}}", "a: P.Input", "no output"),
        ("{{a}}{{b}}", "b: P.Output", "no parameter is called 'a'"),
        ("{{b}}", "a: P.Input, b: P.Output", "parameter 'a' appears nowhere"),
        ("{{output:a}}", "a: P.Input", "is an input, not an output"),
        ("{{output:a}}", "a", "is an object, not an output"),
        ("{{input:b}}{{b}}", "b: P.Output", "before it is generated"),
        ("{{a}}{{b}}", "*a, b: P.Output", "no \\*args"),
        ("{{a}}{{b}}", "a: Nowhere, b: P.Output", "cannot be read"),
        ("{{a}}{{b}}", "a: 'P.Input', b: P.Output", "remove the quotes"),
        ("{{a}}:{{b}}", "a: P.Input, b: P.Output[int]", "type int are not available yet"),
        ("{{a}}:{{b}}", "a: P.Input, b: P.Output = P.output(int)", "type int are not available yet"),
        ("{{a}}:{{b}}", "a: P.Input, b: bool = P.output()", "type bool are not available yet"),
        (
            "{{a}}:{{b}}\n{{c}}",
            "a: P.Input, b: P.Output = P.output(n=2), c: P.Output = P.output()",
            "only the last output",
        ),
    ],
)
def test_bad_definitions(source: str, signature: str, message: str) -> None:
    with pytest.raises(P.TemplateError, match=message):
        function(source, signature)


def test_a_docstring_is_needed() -> None:
    def f(a: P.Input) -> None: ...

    with pytest.raises(P.TemplateError, match="needs a docstring"):
        P.semantic_function(f)


def test_str_outputs_may_say_so() -> None:
    f = function("{{a}}:{{b}}", "a: P.Input, b: str = P.output(str)")
    assert f.outputs == ("b",)


def test_a_space_before_an_output_warns_at_the_function() -> None:
    with pytest.warns(P.TemplateWarning, match="before output 'b' ends in a space") as caught:

        @P.semantic_function
        def f(a: P.Input, b: P.Output) -> None:
            """{{a}}: {{b}}"""

    assert caught[0].filename == __file__
    with pytest.warns(P.TemplateWarning):
        SemanticFunction.from_template("{{a}}: {{output:b}}", name="g")


def test_from_template_keeps_the_text() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        f = P.SemanticFunction.from_template(
            "  {{x}}\n\n{{y}}\n{{s}}", name="reduce", outputs={"s": P.output(max_tokens=3)}, model="m"
        )
    assert f.inputs == ("x", "y")
    assert f._plan.record.segments[0].text == "  "
    assert f._plan.outputs[0].spec.sampling.max_tokens == 3
    assert f._plan.record.segments[-1].kind is SegmentKind.OUTPUT
    assert repr(f) == "<SemanticFunction reduce>"


def test_an_output_that_the_template_lacks() -> None:
    with pytest.raises(P.TemplateError, match="'s' appears nowhere"):
        P.SemanticFunction.from_template("{{x}}{{output:y}}", name="f", outputs={"s": P.output()})


def test_several_outputs_make_a_named_tuple() -> None:
    f = function("{{a}}:{{b}}\n{{c}}", "a: P.Input, b: P.Output, c: P.Output")
    shaped = f.shaped((1, 2))
    assert (shaped.b, shaped.c) == (1, 2)


def test_returns_takes_the_outputs() -> None:
    class Pair(NamedTuple):
        b: P.SemanticVariable
        c: P.SemanticVariable

    @P.semantic_function(returns=Pair, model="m", priority=3)
    def f(a: P.Input, b: P.Output, c: P.Output) -> None:
        """{{a}}:{{b}}\n{{c}}"""

    assert f._returns is Pair
    assert f._model == "m"
    assert f.using(model="other", priority=1)._model == "other"
    assert f._model == "m"


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {}, "missing required argument 'a'"),
        (("x", "y", "z"), {}, "takes 2 positional arguments but 3"),
        (("x",), {"a": "y"}, "multiple values for argument 'a'"),
        (("x",), {"d": "y"}, "unexpected keyword argument 'd'"),
    ],
)
async def test_wrong_calls(session: P.Session, args: tuple[Any, ...], kwargs: dict[str, Any], message: str) -> None:
    f = function("{{a}}:{{b}}", "a: P.Input, b: P.Output")
    with pytest.raises(TypeError, match=message):
        f.using(session=session)(*args, **kwargs)


def test_a_call_needs_a_session() -> None:
    f = function("{{a}}:{{b}}", "a: P.Input, b: P.Output")
    with pytest.raises(P.ConfigError, match="f needs a session"):
        f("text")
