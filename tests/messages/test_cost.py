"""The cost model: what it predicts, what it says of an engine's capacity, and how it travels."""

from __future__ import annotations

import dataclasses
import math

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parrot_mq.messages import CostModel, EngineRecord, RequestShape

COST = CostModel(
    prefill_per_token_ms=0.1,
    decode_base_ms=20,
    decode_per_seq_ms=0.5,
    decode_per_context_token_ms=0.001,
    prefill_per_pair_ms=0.0001,
    shared_saving=0.8,
)
OVERLAPPING = dataclasses.replace(COST, overlap=0.9)
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


@pytest.mark.parametrize("cost", [COST, OVERLAPPING, dataclasses.replace(COST, overlap=1)])
@pytest.mark.parametrize(
    "shape", [CHAT, SHARING, RequestShape(4, 1), RequestShape(300, 1), RequestShape(9000, 2000, 8999)]
)
@pytest.mark.parametrize("bound_ms", [22, 25, 40, 60, 400])
def test_an_engine_filled_to_its_capacity_just_keeps_the_bound(
    cost: CostModel, shape: RequestShape, bound_ms: float
) -> None:
    seqs = cost.capacity_seqs(bound_ms, shape)
    if seqs >= 1:
        assert cost.steady_tpot_ms(seqs, shape) == pytest.approx(bound_ms)
    else:
        assert cost.steady_tpot_ms(1, shape) > bound_ms
    assert cost.capacity_tokens(bound_ms, shape) == pytest.approx(seqs * shape.context_tokens)


def test_what_is_hidden_of_a_step_ends_with_the_reading_of_the_weights() -> None:
    """20 ms are read anyway; 0.1 ms a token are computed meanwhile: beyond 200 tokens nothing more is saved."""
    assert OVERLAPPING.hidden_ms(100) == pytest.approx(0.9 * 10)
    assert OVERLAPPING.hidden_ms(200) == OVERLAPPING.hidden_ms(5000) == pytest.approx(0.9 * 20)
    assert OVERLAPPING.harm_ms(100, 400) == pytest.approx(COST.prefill_ms(100, 400) - 9)
    mixed_ms = OVERLAPPING.step_ms([(100, 400), (50, 0)], 4, 4000, 3000)
    parts_ms = COST.prefill_ms(100, 400) + COST.prefill_ms(50) + COST.decode_step_ms(4, 4000, 3000)
    assert mixed_ms == pytest.approx(parts_ms - 0.9 * 15)
    assert OVERLAPPING.step_ms([(100, 0)]) == COST.decode_base_ms, "a prefill alone reads the weights too"
    assert OVERLAPPING.step_ms([]) == 0


def test_prefills_beside_others_harm_those_that_decode_by_less() -> None:
    assert OVERLAPPING.interference_ms(CHAT) == pytest.approx(COST.interference_ms(CHAT) - 0.9 * 20 / 100)
    assert OVERLAPPING.capacity_seqs(40, CHAT) > COST.capacity_seqs(40, CHAT)


def test_more_than_one_prefill_a_step_hides_behind_the_same_reading() -> None:
    """Each of 200 sequences has a prefill of 22 ms every 100 steps: two a step, for which the weights are read once."""
    once_ms = COST.steady_tpot_ms(200, CHAT) - 0.9 * 20
    assert OVERLAPPING.steady_tpot_ms(200, CHAT) == pytest.approx(once_ms)


costs = st.builds(
    CostModel,
    *[st.floats(0, limit) for limit in (1, 50, 2, 0.01, 0.001, 1, 1)],
)
pieces = st.lists(st.tuples(st.integers(1, 2000), st.integers(0, 4000)), max_size=4)
batches = st.tuples(st.integers(1, 64), st.integers(64, 100_000), st.integers(0, 64))


@given(costs, pieces, batches)
def test_a_mixed_step_lies_between_its_longer_part_and_the_sum(
    cost: CostModel, prefills: list[tuple[int, int]], batch: tuple[int, int, int]
) -> None:
    mixed_ms, decode_ms = cost.step_ms(prefills, *batch), cost.decode_step_ms(*batch)
    prefill_ms = sum(cost.prefill_ms(*piece) for piece in prefills)
    slack = 1 + 1e-9
    assert max(prefill_ms, decode_ms, cost.step_ms(prefills)) <= mixed_ms * slack
    assert mixed_ms <= (prefill_ms + decode_ms) * slack
    assert dataclasses.replace(cost, overlap=0).step_ms(prefills, *batch) == pytest.approx(prefill_ms + decode_ms)


@given(costs, pieces, batches, st.tuples(st.integers(1, 500), st.integers(0, 2000)), st.integers(1, 100))
def test_more_work_never_takes_less_time(
    cost: CostModel, prefills: list[tuple[int, int]], batch: tuple[int, int, int], piece: tuple[int, int], more: int
) -> None:
    step_ms, slack = cost.step_ms(prefills, *batch), 1e-6
    num_seqs, context, shared = batch
    assert cost.step_ms([*prefills, piece], *batch) >= step_ms - slack
    assert cost.step_ms(prefills, num_seqs + more, context, shared) >= step_ms - slack
    assert cost.step_ms(prefills, num_seqs, context + more, shared) >= step_ms - slack
    assert dataclasses.replace(cost, overlap=cost.overlap / 2).step_ms(prefills, *batch) >= step_ms - slack
    assert cost.harm_ms(piece[0] + more, piece[1]) >= cost.harm_ms(*piece) - slack
    shape = RequestShape(piece[0] + more, more)
    assert cost.steady_tpot_ms(num_seqs + 1, shape) >= cost.steady_tpot_ms(num_seqs, shape) - slack


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
    assert CostModel.from_json(old) == CostModel(0.1, 2.0, 0.25, 0.125, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "7",
        '{"decode_base_ms": -1}',
        '{"shared_saving": 1.5}',
        '{"overlap": 1.01}',
        '{"decode_base_ms": "fast"}',
        '{"decode_base_ms": null}',
    ],
)
def test_what_is_no_cost_model_is_said_so(text: str) -> None:
    with pytest.raises(ValueError):
        CostModel.from_json(text)


@given(st.integers(0, 5000), st.integers(0, 3000), st.floats(0, 1))
def test_pieces_that_hide_harm_least(num_tokens: int, cached: int, overlap: float) -> None:
    """Cut as long as one reading of the weights, the pieces of a prefill delay decoding by what is predicted."""
    cost = CostModel(0.2, 20.0, 0.5, 0.001, 1e-6, overlap=overlap)
    pieces = [(start, min(100, num_tokens - start)) for start in range(0, num_tokens, 100)]
    harm_ms = sum(cost.harm_ms(tokens, cached + start) for start, tokens in pieces)
    assert cost.harm_in_pieces_ms(num_tokens, cached) == pytest.approx(harm_ms)
    assert cost.harm_in_pieces_ms(num_tokens, cached) <= cost.harm_ms(num_tokens, cached) + 1e-9
