"""A scheduler and engines as processes beside a real Redis."""

from __future__ import annotations

import asyncio

import pytest

import parrot_mq as P
from parrot_mq.messages import RequestState
from parrot_mq.process import ChildFailed, ChildState, Restarts
from parrot_mq.stack import EngineChoice, NotReady, run_stack

pytestmark = pytest.mark.redis

SIM = EngineChoice("sim", arguments=("--instant",))
FAST = Restarts(limit=2, min_s=0.05)


@P.semantic_function
def shout(word: P.Input, loud: P.Output = P.output(max_tokens=8)) -> None:
    """Say it louder. echo:{{word}}{{loud}}"""


@P.semantic_function
def go_on(word: P.Input, speech: P.Output = P.output(max_tokens=200)) -> None:
    """Say more about {{word}}:{{speech}}"""


async def state_of(variable: P.SemanticVariable) -> RequestState:
    """The state of the request that produces it."""
    producer = await variable.producer()
    assert producer is not None
    return producer.state


async def test_a_stack_serves_and_a_killed_process_comes_back(redis_url: str) -> None:
    states: list[tuple[str, ChildState]] = []

    def note(name: str, state: ChildState, detail: str) -> None:
        states.append((name, state))

    ready: list[str] = []
    async with run_stack(redis_url, [SIM, SIM], restarts=FAST, on_state=note) as stack:
        await stack.wait_until_ready(60, ready.append)
        assert sorted(ready) == ["engine-1", "engine-2", "scheduler"]
        async with P.connect(redis_url) as client, client.session():
            assert await shout("one").get(timeout_s=30) == "one"
            for child in stack.children:
                child.kill()
            assert await shout("two").get(timeout_s=60) == "two"
            await stack.wait_until_ready(60)
        assert sum(state is ChildState.CRASHED for _, state in states) == 3
    assert all(child.pid is None for child in stack.children)


async def test_an_engine_that_cannot_start_ends_the_stack(redis_url: str) -> None:
    async def start() -> None:
        async with run_stack(redis_url, [EngineChoice("torch", "/nowhere")], scheduler=False) as stack:
            await stack.wait_until_ready(60)

    with pytest.raises(ChildFailed, match="engine-1 ended with status 2: --model /nowhere: there is no folder"):
        await start()


async def test_not_ready_in_time_names_the_process(redis_url: str) -> None:
    async with run_stack(redis_url, [SIM], scheduler=False) as stack:
        with pytest.raises(NotReady, match="engine-1 was not ready within 0 s"):
            await stack.wait_until_ready(0)


async def test_the_callers_error_is_the_callers(redis_url: str) -> None:
    async def fail() -> None:
        async with run_stack(redis_url, [SIM], scheduler=False) as stack:
            stack.kill()
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await fail()


async def test_two_errors_at_once_are_both_told(redis_url: str) -> None:
    async def start() -> None:
        async with run_stack(redis_url, [EngineChoice("torch", "/nowhere")], scheduler=False):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise ValueError("mine") from None

    with pytest.raises(BaseExceptionGroup) as caught:
        await start()
    assert {type(error) for error in caught.value.exceptions} == {ValueError, ChildFailed}


async def test_processes_get_the_time_to_drain_that_their_settings_give_them(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARROT_MQ_DRAIN_TIMEOUT_S", "1234")
    async with run_stack(redis_url, [SIM]) as stack:
        assert all(child.stop_timeout_s > 1234 for child in stack.children)
        stack.kill()


async def test_in_a_hurry_an_engine_gives_back_what_it_runs(redis_url: str) -> None:
    slow = EngineChoice("sim", arguments=("--cost", '{"decode_base_ms": 500}'))  # a step; the request takes 200
    lines: list[str] = []
    async with P.connect(redis_url) as client, client.session():
        async with (
            asyncio.timeout(60),
            run_stack(redis_url, [slow], on_line=lambda name, line: lines.append(line)) as stack,
        ):
            await stack.wait_until_ready(60)
            speech = go_on("again")
            await speech.published()
            while await state_of(speech) is not RequestState.RUNNING:  # noqa: ASYNC110 - another process' life
                await asyncio.sleep(0.02)
            stack.hurry()  # at the first time it drains
            while not any("drains: 1 run" in line for line in lines):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        # and at the second, from the end of the block, it gives back
        assert await state_of(speech) is RequestState.READY


def test_commands() -> None:
    command = EngineChoice("torch", "some/model", ("--device", "cpu")).command
    assert command[1:] == ["-m", "parrot_workers", "--engine", "torch", "--model", "some/model", "--device", "cpu"]
    assert "--model" not in EngineChoice().command
