"""Programs as users write them, checked by ``mypy --strict`` in test_typing.py; never run."""

from __future__ import annotations

from typing import NamedTuple, assert_type

import parrot_mq as P
import parrot_mq.sync as S


@P.semantic_function
def write_code(task: P.Input, code: P.Output = P.output(max_tokens=200)) -> None:
    """Write python code of {{task}}. Code:{{code}}"""


class Review(NamedTuple):
    verdict: P.SemanticVariable
    comments: P.VariableList


@P.semantic_function(returns=Review, model="small")
def review(
    code: P.Input,
    rules: list[str],
    verdict: P.Output = P.output(transform=P.strip()),
    comments: P.Output = P.output(n=3, temperature=0.7, seed=1),
) -> None:
    """{{code}} {{rules}} {{verdict}} {{comments}}"""


@P.SemanticFunction
def write_test(task: P.SemanticVariable, code: P.SemanticVariable) -> None:
    """{{input:task}} {{input:code}}:{{output:test}}"""


@P.semantic_function(formatter=str)
def show(thing: dict[str, int], shown: P.Output = P.output()) -> None:
    """{{thing}}:{{shown}}"""


@S.semantic_function
def blocking(task: S.Input, code: S.Output = S.output(max_tokens=20)) -> None:
    """{{task}}:{{code}}"""


async def program() -> str:
    async with P.connect("redis://localhost:6379") as client, client.session(tenant="acme") as session:
        assert_type(client, P.Client)
        assert_type(session, P.Session)
        task = session.variable("a game", name="task")
        code = write_code(task)
        assert_type(code, P.SemanticVariable)
        assert_type(write_code("a text", code=P.SemanticVariable()), P.SemanticVariable)
        assert_type(write_test(task, code), P.SemanticVariable)
        assert_type(review(code, ["short"]).comments, P.VariableList)
        assert_type(await review(code, ["short"]).comments, list[str])
        assert_type(write_code.using(session=session, model="large")(task), P.SemanticVariable)
        assert_type(P.map(write_code, ["a", "b"]), P.VariableList)
        assert_type(await P.gather(code, P.map(write_code, ["a"])), list[str])
        assert_type(await P.first(1, code, task), P.VariableList)
        assert_type(await code.explain(), P.Explanation)
        async for piece in code.stream():
            assert_type(piece, str)
        made = P.SemanticFunction.from_template("{{x}}:{{y}}", name="made", outputs={"y": P.output()})
        assert_type(made(x=code), P.SemanticVariable)
        assert_type(await code.get(perf=P.Deadline(3.0), timeout_s=30), str)
        return await code


def synchronous() -> str:
    with S.connect() as client, client.session(tenant="acme") as session:
        code = blocking(session.variable("a game"))
        assert_type(code, S.SemanticVariable)
        assert_type(S.map(blocking, ["a"]), S.VariableList)
        assert_type(S.gather(code), list[str])
        for piece in code.stream():
            assert_type(piece, str)
        return code.get(perf=S.LATENCY)


def machines() -> None:
    machine = P.VirtualMachine("redis://localhost:6379")
    assert_type(machine.run(program), str)
    assert_type(machine.run(synchronous), str)
    with machine.running_scope() as session:
        assert_type(session, S.Session)


def mistakes() -> None:
    write_code(3)  # type: ignore[arg-type]
    write_code()  # type: ignore[call-arg]
    write_code("a", nothing="b")  # type: ignore[call-arg]
    review("a", [1])  # type: ignore[list-item]
    show({"a": "b"})  # type: ignore[dict-item]
    _ = write_code("a").comments  # type: ignore[attr-defined]
    blocking(write_code("a"))  # type: ignore[arg-type]
    P.output(temprature=1)  # type: ignore[call-arg]
