"""The worker shell with a simulated engine: on a real Redis and on fakeredis."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from parrot_mq.messages import Binding, CostModel, Transform, TransformKind
from parrot_mq.settings import StoreSettings
from parrot_workers.engine.port import SequenceInput
from parrot_workers.sim import InstantClock, SimEngine

FREE = CostModel(0, 0, 0)


async def test_a_request_is_claimed_run_and_completed(desk: Any, open_store: Any, working: Any) -> None:
    async with working(open_store) as worker:
        asked = await desk.ask("Say echo:{{what}}", values={"what": "hello world"}, dispatch_to=worker.engine_id)
        assert await desk.value(asked) == "hello world"
        record = await desk.request(asked)
        assert record.state == "done"
        usage = orjson.loads(record.usage_json)
        assert usage["num_output_tokens"] == 2
        assert usage["num_prompt_tokens"] > 2
        assert usage["finish"] == "stop"


async def test_many_requests_share_the_engine(desk: Any, open_store: Any, working: Any) -> None:
    async with working(open_store, lambda: SimEngine(max_num_seqs=8, cost=FREE)) as worker:
        asked = [
            await desk.ask("echo:{{n}}", values={"n": str(number)}, dispatch_to=worker.engine_id)
            for number in range(40)
        ]
        assert [await desk.value(one) for one in asked] == [str(number) for number in range(40)]


async def test_an_engine_that_is_slower_than_announced_says_so_in_its_heartbeat(
    desk: Any, open_store: Any, working: Any
) -> None:
    def make() -> SimEngine:
        return SimEngine(
            cost=CostModel(decode_base_ms=0.1), true_cost=CostModel(decode_base_ms=2), clock=InstantClock()
        )

    async with working(open_store, make) as worker:
        announced = await desk.engine()
        assert announced.cost.decode_base_ms == 0.1
        asked = await desk.ask("Say", sampling={"max_tokens": 200}, dispatch_to=worker.engine_id)
        await desk.value(asked)
        step_ms = CostModel(decode_base_ms=2).decode_step_ms(1, 0)
        learned = await desk.engine(lambda record: record.cost.decode_step_ms(1, 0) > 0.9 * step_ms)
        assert learned.cost.decode_step_ms(1, 0) < 1.1 * step_ms


async def test_generated_ids_are_kept_with_a_value_and_given_to_the_next(
    desk: Any, open_store: Any, working: Any
) -> None:
    seen: list[SequenceInput] = []

    class Watched(SimEngine):
        def add(self, sequence: SequenceInput) -> None:
            seen.append(sequence)
            super().add(sequence)

    async with working(open_store, lambda: Watched("llama", cost=FREE)) as worker:
        first = await desk.ask("Tell me", sampling={"max_tokens": 4}, dispatch_to=worker.engine_id)
        value = await desk.resolved(first)
        assert len(value.token_ids) == 4
        assert value.tokens_by == "llama@sim"
        second = await desk.ask(
            "echo:{{it}}",
            values={"it": "unused"},
            bindings={"it": Binding(variable=first.output)},
            dispatch_to=worker.engine_id,
        )
        assert await desk.value(second) == value.value
    segment = seen[-1].segments[-1]
    assert segment.is_value
    assert segment.token_ids == value.token_ids
    assert seen[-1].salt == "tenant acme"
    assert not seen[-1].segments[0].is_value


async def test_ids_of_another_model_are_not_passed_on(desk: Any, open_store: Any, working: Any) -> None:
    async with working(open_store, lambda: SimEngine("llama", cost=FREE)) as worker:
        first = await desk.ask("Tell me", sampling={"max_tokens": 4}, dispatch_to=worker.engine_id)
        value = await desk.value(first)
    seen: list[SequenceInput] = []

    class Watched(SimEngine):
        def add(self, sequence: SequenceInput) -> None:
            seen.append(sequence)
            super().add(sequence)

    async with working(open_store, lambda: Watched("qwen", cost=FREE)) as worker:
        bindings = {"it": Binding(variable=first.output)}
        second = await desk.ask("echo:{{it}}", values={"it": ""}, bindings=bindings, dispatch_to=worker.engine_id)
        assert await desk.value(second) == value
    assert seen[0].segments[-1].token_ids is None


async def test_text_bound_by_the_caller_is_a_value(desk: Any, open_store: Any, working: Any) -> None:
    async with working(open_store) as worker:
        bindings = {"n": Binding(text="<|seven|>")}
        asked = await desk.ask("echo:{{n}}", values={"n": ""}, bindings=bindings, dispatch_to=worker.engine_id)
        assert await desk.value(asked) == "<|seven|>"


@pytest.mark.parametrize(
    ("transform", "said", "value"),
    [
        (Transform(TransformKind.STRIP), "  yes \n", "yes"),
        (Transform(TransformKind.JSON_FIELD, "a.0"), 'Sure: {"a": [1, 2]}', "1"),
        (Transform(TransformKind.REGEX, "#(.*)#"), "is #it# not", "it"),
    ],
)
async def test_a_transform_makes_the_value_and_the_raw_text_is_kept(
    desk: Any, open_store: Any, working: Any, transform: Transform, said: str, value: str
) -> None:
    async with working(open_store) as worker:
        asked = await desk.ask("echo:{{x}}", values={"x": said}, transform=transform, dispatch_to=worker.engine_id)
        record = await desk.resolved(asked)
        assert (record.value, record.raw, record.token_ids) == (value, said, ())


async def test_a_transform_that_does_not_match_fails_without_a_retry(desk: Any, open_store: Any, working: Any) -> None:
    async with working(open_store) as worker:
        transform = Transform(TransformKind.REGEX, "#(.*)#")
        asked = await desk.ask("echo:{{x}}", values={"x": "no"}, transform=transform, dispatch_to=worker.engine_id)
        error = (await desk.resolved(asked)).error
        assert error.kind == "TransformFailed"
        assert error.message == "output 'answer' of answer_it: the pattern '#(.*)#' does not match the output: 'no'"
        assert (error.engine, error.attempts) == (worker.engine_id, 1)


async def test_large_values_come_and_go_by_reference(desk: Any, open_store: Any, working: Any) -> None:
    text = "é" * 20_000
    async with working(open_store) as worker:
        asked = await desk.ask("echo:{{x}}", values={"x": text}, dispatch_to=worker.engine_id)
        record = await desk.resolved(asked)
        assert record.value_fence
        assert record.value == text


async def test_a_value_that_is_gone_fails_the_request(desk: Any, open_store: Any, working: Any) -> None:
    asked = await desk.ask("echo:{{x}}", values={"x": "y" * 70_000})
    (key,) = [key async for key in desk.store.client.scan_iter("*val:*")]
    await desk.store.client.delete(key)
    async with working(open_store) as worker:
        await desk.dispatch(asked, worker.engine_id)
        error = (await desk.resolved(asked)).error
        assert error.kind == "InvalidRequest"
        assert "is gone" in error.message


async def test_a_template_that_is_gone_fails_the_request(desk: Any, open_store: Any, working: Any) -> None:
    asked = await desk.ask("echo:hi")
    (key,) = [key async for key in desk.store.client.scan_iter("*fn:*")]
    await desk.store.client.delete(key)
    async with working(open_store) as worker:
        await desk.dispatch(asked, worker.engine_id)
        error = (await desk.resolved(asked)).error
        assert error.kind == "InvalidRequest"
        assert "template" in error.message


async def test_what_the_engine_cannot_run_is_invalid_and_not_retried(desk: Any, open_store: Any, working: Any) -> None:
    async with working(open_store, lambda: SimEngine(max_model_len=8)) as worker:
        asked = await desk.ask("a prompt that is much too long for it", dispatch_to=worker.engine_id)
        error = (await desk.resolved(asked)).error
        assert error.kind == "InvalidRequest"
        assert "8" not in error.message.split(";")[0].split("takes")[0]
        assert "takes 7" in error.message
        assert (await desk.request(asked)).attempt == 1


async def test_a_value_beyond_the_limit_is_an_error_of_the_request(desk: Any, open_store: Any, working: Any) -> None:
    async with working(open_store, store=StoreSettings(max_value_bytes=3)) as worker:
        asked = await desk.ask("echo:four", dispatch_to=worker.engine_id)
        error = (await desk.resolved(asked)).error
        assert error.kind == "InvalidRequest"
        assert "4 bytes" in error.message


async def test_a_malformed_request_fails_for_good(desk: Any, open_store: Any, working: Any) -> None:
    asked = await desk.ask("echo:hi")
    key = desk.store.partitions[0].keys.request(asked.request)
    await desk.store.client.hset(key, "spec", '{"id": 1}')
    async with working(open_store) as worker:
        await desk.dispatch(asked, worker.engine_id)
        error = (await desk.resolved(asked)).error
        assert error.kind == "InvalidRequest"
        assert "malformed" in error.message


async def test_an_unbound_placeholder_fails_for_good(desk: Any, open_store: Any, working: Any) -> None:
    unknown = Binding(variable="0-v-nobody")
    asked = await desk.ask("echo:hi")
    key = desk.store.partitions[0].keys.request(asked.request)
    function = await desk.ask("echo:{{who}}", values={"who": "me"})
    spec = orjson.loads(await desk.store.client.hget(desk.store.partitions[0].keys.request(function.request), "spec"))
    spec["bindings"]["who"] = {"variable": unknown.variable}
    await desk.store.client.hset(
        key, "spec", orjson.dumps(spec | {"id": asked.request, "output": asked.output}).decode()
    )
    async with working(open_store) as worker:
        await desk.dispatch(asked, worker.engine_id)
        error = (await desk.resolved(asked)).error
        assert error.kind == "InvalidRequest"
        assert "0-v-nobody" in error.message


async def test_the_lowest_rank_starts_first(desk: Any, open_store: Any, working: Any, gated: Any) -> None:
    engine = gated(max_num_seqs=1)
    async with working(open_store, lambda: engine, heartbeat_s=0.02) as worker:
        first = await desk.ask("first", dispatch_to=worker.engine_id)
        await desk.until(first, "running")
        asked = {rank: await desk.ask(f"echo:{rank}") for rank in (3, 1, 2)}
        for rank, one in asked.items():
            await desk.dispatch(one, worker.engine_id, f'{{"rank": {rank}}}')
        await desk.engine(lambda record: record.num_waiting >= 3)
        engine.permit()
        for one in asked.values():
            await desk.value(one)
    assert [sequence.segments[-1].text for sequence in engine.added] == ["first", "echo:1", "echo:2", "echo:3"]


async def test_the_heartbeat_says_what_the_engine_is_and_does(desk: Any, open_store: Any, working: Any) -> None:
    async with working(open_store, lambda: SimEngine("sim", max_num_seqs=7), heartbeat_s=0.02) as worker:
        record = await desk.engine()
        assert (record.id, record.kind, record.model, record.max_num_seqs) == (worker.engine_id, "sim", "sim", 7)
        assert record.id.startswith("sim-")
        assert record.pid > 0
        plan = '{"rank": 1, "objective": "throughput", "prefix": ["d1", "d2"], "group": "g"}'
        asked = await desk.ask("long", sampling={"max_tokens": 60}, dispatch_to=worker.engine_id, plan=plan)
        busy = await desk.engine(lambda record: record.num_running == 1)
        assert busy.num_free_blocks < busy.num_blocks
        await desk.value(asked)
        idle = await desk.engine(lambda record: record.num_running == 0 and bool(record.resident))
        assert idle.resident == ("d2", "d1")
        assert idle.tokens_per_s > 0
    assert await desk.reader.engine(worker.engine_id) is None
