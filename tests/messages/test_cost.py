"""The cost model: what it predicts, what it says of an engine's capacity, and how it travels."""

from __future__ import annotations

import dataclasses
import math

import orjson
import pytest

from parrot_mq.messages import CostModel, EngineRecord, RequestShape

COST = CostModel(
    prefill_per_token_ms=0.1,
    decode_base_ms=20,
    decode_per_seq_ms=0.5,
    decode_per_context_token_ms=0.001,
    prefill_per_pair_ms=0.0001,
    shared_saving=0.8,
)
CHAT = RequestShape(prompt_tokens=200, output_tokens=100)
SHARING = RequestShape(prompt_tokens=1200, output_tokens=100, cached_tokens=1000)


def test_a_prefill_behind_a_cached_prefix_reads_its_keys_as_well() -> None:
    assert COST.prefill_ms(100) == pytest.approx(100 * 0.1 + 100 * 50 * 0.0001)
    assert COST.prefill_ms(100, 400) == pytest.approx(100 * 0.1 + 100 * 450 * 0.0001)
    assert COST.prefill_ms(300) == pytest.approx(COST.prefill_ms(100) + COST.prefill_ms(200, 100)), "in chunks or whole"


def test_a_decode_step_saves_a_part_of_what_is_shared() -> None:
    assert COST.decode_step_ms(4, 4000) == pytest.approx(20 + 2 + 4)
    assert COST.decode_step_ms(4, 4000, 3000) == pytest.approx(20 + 2 + 4 - 0.8 * 3)


def test_running_sequences_wait_for_the_prefills_of_those_that_follow() -> None:
    """One in a hundred of the sequences ends at each step, and each that begins prefills 200 tokens."""
    assert COST.interference_ms(CHAT) == pytest.approx(COST.prefill_ms(200) / 100)
    assert COST.tpot_ms(8, 2000) == COST.decode_step_ms(8, 2000)
    assert COST.tpot_ms(8, 2000, shape=CHAT) == pytest.approx(COST.decode_step_ms(8, 2000) + 8 * 0.22)
    assert COST.interference_ms(SHARING) == pytest.approx(COST.prefill_ms(200, 1000) / 100)


@pytest.mark.parametrize("shape", [CHAT, SHARING, RequestShape(4, 1), RequestShape(9000, 2000, 8999)])
@pytest.mark.parametrize("bound_ms", [22, 25, 40, 400])
def test_an_engine_filled_to_its_capacity_just_keeps_the_bound(shape: RequestShape, bound_ms: float) -> None:
    seqs = COST.capacity_seqs(bound_ms, shape)
    if seqs >= 1:
        assert COST.steady_tpot_ms(seqs, shape) == pytest.approx(bound_ms)
    else:
        assert COST.steady_tpot_ms(1, shape) > bound_ms
    assert COST.capacity_tokens(bound_ms, shape) == pytest.approx(seqs * shape.context_tokens)


def test_capacity_grows_with_the_bound_and_with_what_is_shared() -> None:
    capacities = [COST.capacity_tokens(bound_ms, CHAT) for bound_ms in (10, 20, 20.5, 21, 30, 60)]
    assert capacities[:2] == [0, 0], "not even an empty step is that fast"
    assert capacities[1:] == sorted(set(capacities))
    unlike = dataclasses.replace(COST, shared_saving=0)
    assert COST.capacity_seqs(60, SHARING) > unlike.capacity_seqs(60, SHARING)


def test_capacity_has_no_end_where_more_sequences_cost_nothing() -> None:
    assert CostModel(0, 5, 0, 0).capacity_tokens(6, CHAT) == math.inf
    assert CostModel(0, 5, 0, 0).capacity_tokens(5, CHAT) == 0


def test_a_heartbeat_of_a_newer_process_is_understood() -> None:
    values = dataclasses.asdict(COST) | {"decode_per_expert_ms": 0.25, "kind": "measured"}
    assert CostModel.from_json(orjson.dumps(values).decode()) == COST
    record = EngineRecord("e1", "sim", "m", cost=COST)
    fields = record.to_fields()
    assert EngineRecord.from_fields(fields) == record
    assert EngineRecord.from_fields(fields | {"cost": orjson.dumps(values).decode()}) == record


def test_a_heartbeat_of_an_older_process_has_the_defaults_of_what_it_does_not_know() -> None:
    old = '{"prefill_per_token_ms":0.1,"decode_base_ms":2,"decode_per_seq_ms":0.25,"decode_per_context_token_ms":0.125}'
    assert CostModel.from_json(old) == CostModel(0.1, 2.0, 0.25, 0.125, 0.0, 0.0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "7",
        '{"decode_base_ms": -1}',
        '{"shared_saving": 1.5}',
        '{"decode_base_ms": "fast"}',
        '{"decode_base_ms": null}',
    ],
)
def test_what_is_no_cost_model_is_said_so(text: str) -> None:
    with pytest.raises(ValueError):
        CostModel.from_json(text)
