"""The program of the paper's slide "Semantic Variables in Parrot Front-end", as written there."""

from __future__ import annotations

import warnings

import pytest

import parrot_mq as P
from parrot_mq import LATENCY
from tests.sdk.fake_service import FakeService

with warnings.catch_warnings():
    warnings.simplefilter("ignore", P.TemplateWarning)  # "Code: " ends in a space

    @P.SemanticFunction
    def WritePythonCode(task: P.SemanticVariable):  # type: ignore[no-untyped-def]
        """You are an expert software engineer.
        Write python code of {{input:task}}.
        Code: {{output:code}}
        """

    @P.SemanticFunction
    def WriteTestCode(  # type: ignore[no-untyped-def]
        task: P.SemanticVariable, code: P.SemanticVariable
    ):
        """You are an experienced QA engineer.
        You write test code for {{input:task}}.
        Code: {{input:code}}.
        Your test code: {{output:test}}
        """


async def WriteSnakeGame() -> tuple[str, str]:
    task = P.SemanticVariable("a snake game")
    code = WritePythonCode(task)
    test = WriteTestCode(task, code)
    return await code.get(perf=LATENCY), await test.get(perf=LATENCY)


async def test_the_slides_program(client: P.Client, service: FakeService) -> None:
    service.answer = lambda spec, prompt: f"[{spec.output_name}]"
    async with client.session():
        assert await WriteSnakeGame() == ("[code]", "[test]")
    assert list(service.prompts.values()) == [
        "You are an expert software engineer.\nWrite python code of a snake game.\nCode: ",
        "You are an experienced QA engineer.\nYou write test code for a snake game.\nCode: [code].\nYour test code: ",
    ]
    assert len(service.batches) == 1


@pytest.mark.redis
def test_the_slides_program_on_a_virtual_machine(served_url: str) -> None:
    code, test = P.VirtualMachine(served_url).run(WriteSnakeGame)
    assert code.startswith("<WritePythonCode.code:")
    assert test.startswith("<WriteTestCode.test:")
