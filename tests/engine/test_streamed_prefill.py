"""A value that flows into its reader's prefill on the real engine: the same tokens, and nearly all of it cached."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
import pytest

from parrot_kernels.attention_plan import BLOCK_SIZE
from parrot_mq.messages import Binding, FunctionRecord, PrefixHint, Segment, SegmentKind
from parrot_workers.engine.engine import Engine
from parrot_workers.engine.port import SequenceInput
from tests.workers.conftest import Desk, FakeOpener, _eventually, _working

PREFIX = "The parrot repeats what the queue has said, and says what it thinks of it: "
TEMPLATE = FunctionRecord(
    "answer_it",
    (
        Segment(SegmentKind.CONSTANT, PREFIX),
        Segment(SegmentKind.INPUT, "draft"),
        Segment(SegmentKind.OUTPUT, "answer"),
    ),
)
DRAFT = {"max_tokens": 80, "ignore_eos": True, "temperature": 0.8, "seed": 5}
ANSWER = {"max_tokens": 16, "ignore_eos": True}


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "seed": 6}])
async def test_a_followed_value_is_cached_and_changes_no_token(
    make_engine: Callable[..., Engine], sampling: dict[str, Any]
) -> None:
    found = []
    for follows in (False, True):
        opener, engine = FakeOpener(), make_engine("llama", max_num_batched_tokens=64)
        prefilled: list[SequenceInput] = []
        prefill = engine.prefill

        def noted(
            sequence: SequenceInput,
            prefill: Callable[[SequenceInput], None] = prefill,
            prefilled: list[SequenceInput] = prefilled,
        ) -> None:
            prefill(sequence)
            prefilled.append(sequence)

        engine.prefill = noted  # type: ignore[method-assign]
        async with _working(opener, lambda engine=engine: engine) as worker, await opener() as store:
            desk = Desk(store)
            draft = await desk.ask("hello world, hello there: ", sampling=DRAFT)
            answer = await desk.ask(
                PREFIX + "{{draft}}",
                values={"draft": "unused"},
                bindings={"draft": Binding(variable=draft.output)},
                sampling=ANSWER | sampling,
            )
            if follows:
                hint = PrefixHint("k", "acme", TEMPLATE.digest, 1, follow=draft.output)
                await desk.scheduler.prefill(worker.engine_id, hint)

                async def begun(prefilled: list[SequenceInput] = prefilled) -> bool:
                    return bool(prefilled)

                await _eventually(begun)
            await desk.dispatch(draft, worker.engine_id)
            ids = (await desk.resolved(draft)).token_ids

            async def settled(
                worker: Any = worker,
                engine: Engine = engine,
                ids: tuple[int, ...] = ids,
                follows: bool = follows,
                prefilled: list[SequenceInput] = prefilled,
            ) -> bool:
                # The last prefill is on its way to the engine for a moment after nothing is followed any more.
                arrived = not follows or prefilled[-1].segments[-1].token_ids == ids
                return arrived and len(worker._runner.streamed) == 0 and not engine.has_work()

            await _eventually(settled)
            await desk.dispatch(answer, worker.engine_id)
            records = [await desk.resolved(one) for one in (draft, answer)]
            assert [record.error for record in records] == [None, None]
            usage = orjson.loads((await desk.request(answer)).usage_json)
            found.append(([(r.value, r.token_ids) for r in records], usage, prefilled))
    (plain, plain_usage, none), (streamed, usage, prefilled) = found
    assert streamed == plain
    assert none == []
    (_, ids), _ = plain
    assert ids, "the value's ids are not those that its reader gets: nothing could be followed"
    assert prefilled[-1].segments[-1].token_ids == ids
    assert len(prefilled) > 3
    assert usage["num_prompt_tokens"] == plain_usage["num_prompt_tokens"]
    assert plain_usage["num_cached_tokens"] == 0
    assert usage["num_cached_tokens"] > usage["num_prompt_tokens"] - 2 * BLOCK_SIZE
