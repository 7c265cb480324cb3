"""Each sampling parameter, against transformers' processors where it has one, else against its definition."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from parrot_kernels import sampling as torch_sampling
from parrot_kernels.torch_backend import TorchBackend
from parrot_mq.messages import SamplingParams
from parrot_workers.engine import sampler
from parrot_workers.engine.detokenizer import Detokenizer
from parrot_workers.engine.engine import Engine
from parrot_workers.engine.noise import noise_key
from parrot_workers.engine.port import FinishReason, PromptSegment, SequenceInput, SequenceOutput
from parrot_workers.engine.sampler import adjust, parameters
from parrot_workers.engine.sequence import Sequence, seed_of

VOCAB_SIZE = 50
PROMPT, OUTPUT = [3, 4, 5, 3], [7, 7, 8, 3]
MakeEngine = Callable[..., Engine]


def make_sequence(name: str = "s", output: list[int] = OUTPUT, **sampling: Any) -> Sequence:
    params = SamplingParams(**sampling)
    sequence = Sequence(
        SequenceInput(name, (), params), PROMPT, Detokenizer(lambda ids: ""),
        arrival=0, max_output_tokens=100, stop_ids=frozenset({1, *params.stop_token_ids}),
    )  # fmt: skip
    sequence.token_ids += output
    return sequence


def sample(logits: Tensor, sequences: list[Sequence]) -> list[int]:
    ids: list[int] = sampler.sample(TorchBackend(), logits, sequences).tolist()
    return ids


def warp(logits: Tensor, sequences: list[Sequence]) -> Tensor:
    *how, _ = parameters(sequences, [0] * len(sequences), logits.device)
    return torch_sampling.warp(logits, *how)


def gumbel_noise(keys: list[tuple[int, int]], vocab_size: int) -> Tensor:
    return torch_sampling.gumbel_noise(torch.tensor([noise_key(*key) for key in keys], dtype=torch.int32), vocab_size)


def make_logits(rows: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(rows, VOCAB_SIZE, generator=torch.Generator().manual_seed(seed)) * 3


WARPERS = [
    ({"temperature": 0.7}, [transformers.TemperatureLogitsWarper(0.7)]),
    ({"top_k": 5}, [transformers.TopKLogitsWarper(5)]),
    ({"top_k": 500}, [transformers.TopKLogitsWarper(500)]),
    ({"top_p": 0.8}, [transformers.TopPLogitsWarper(0.8)]),
    ({"top_p": 1e-6}, [transformers.TopPLogitsWarper(1e-6)]),
    ({"min_p": 0.1}, [transformers.MinPLogitsWarper(0.1)]),
    (
        {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
        [
            transformers.TemperatureLogitsWarper(1.5),
            transformers.TopKLogitsWarper(20),
            transformers.TopPLogitsWarper(0.9),
            transformers.MinPLogitsWarper(0.02),
        ],
    ),
]


@pytest.mark.parametrize(
    ("params", "warpers"), WARPERS, ids=lambda value: str(value) if isinstance(value, dict) else ""
)
def test_warpers_equal_transformers(params: dict[str, float], warpers: list[Any]) -> None:
    logits = make_logits(16)
    expected = logits.clone()
    for warper in warpers:
        expected = warper(torch.zeros(16, 1, dtype=torch.long), expected)
    sequence = make_sequence(**{"temperature": 1.0, **params})
    torch.testing.assert_close(warp(logits, [sequence] * 16), expected)


def test_rows_of_one_batch_keep_their_own_parameters() -> None:
    logits = make_logits(len(WARPERS))
    sequences = [make_sequence(**{"temperature": 1.0, **params}) for params, _ in WARPERS]
    together = warp(logits, sequences)
    for row, sequence in enumerate(sequences):
        torch.testing.assert_close(together[row], warp(logits[row : row + 1], [sequence])[0])


def test_top_k_ties_stay() -> None:
    logits = torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0]])
    kept = warp(logits, [make_sequence(temperature=1.0, top_k=2)])
    assert torch.isfinite(kept).tolist() == [[False, True, True, True, False]]


@pytest.mark.parametrize("penalty", [0.5, 1.3])
def test_repetition_penalty_equals_transformers(penalty: float) -> None:
    logits = make_logits()
    processor = transformers.RepetitionPenaltyLogitsProcessor(penalty)
    expected = processor(torch.tensor([PROMPT + OUTPUT]), logits.clone())
    adjust(logits, [make_sequence(repetition_penalty=penalty)])
    torch.testing.assert_close(logits, expected)


def test_presence_and_frequency_count_generated_tokens() -> None:
    logits = make_logits()
    expected = logits.clone()
    for token_id, times in Counter(OUTPUT).items():
        expected[0, token_id] -= 0.5 + 0.25 * times
    adjust(logits, [make_sequence(presence_penalty=0.5, frequency_penalty=0.25)])
    torch.testing.assert_close(logits, expected)


def test_logit_bias_is_added() -> None:
    logits = make_logits()
    expected = logits.clone()
    expected[0, 9] += 3
    expected[0, 11] -= 100
    adjust(logits, [make_sequence(logit_bias={9: 3.0, 11: -100.0})])
    torch.testing.assert_close(logits, expected)


def test_min_tokens_equals_transformers() -> None:
    logits = make_logits(2)
    processor = transformers.MinNewTokensLengthLogitsProcessor(len(PROMPT), 5, [1, 2], device="cpu")
    expected = processor(torch.tensor([PROMPT + OUTPUT]), logits[:1].clone())
    untouched = logits[1].clone()
    early, late = make_sequence(min_tokens=5, stop_token_ids=(2,)), make_sequence(min_tokens=4, stop_token_ids=(2,))
    adjust(logits, [early, late])
    torch.testing.assert_close(logits[:1], expected)
    torch.testing.assert_close(logits[1], untouched)


def test_greedy_rows_beside_sampled_ones_stay_exact() -> None:
    logits = make_logits(6)
    best = logits.argmax(-1).tolist()
    sequences = [make_sequence(temperature=float(row % 2)) for row in range(6)]
    assert [t for row, t in enumerate(sample(logits, sequences)) if row % 2 == 0] == best[::2]


def test_a_draw_depends_on_seed_and_position_alone() -> None:
    row = make_logits()
    ours = make_sequence("ours", temperature=1.0, seed=5)
    [alone] = sample(row.clone(), [ours])
    others = [make_sequence(f"other-{i}", temperature=0.5 + i, top_k=i) for i in range(5)]
    for place in range(6):
        batch = [*others[:place], ours, *others[place:]]
        logits = torch.cat([make_logits(place, 1), row, make_logits(5 - place, 2)])
        assert sample(logits, batch)[place] == alone


def test_draws_differ_between_seeds_and_positions() -> None:
    flat = torch.zeros(1, 1000)
    by_seed = {sample(flat.clone(), [make_sequence(temperature=1.0, seed=seed)])[0] for seed in range(40)}
    by_position = {sample(flat.clone(), [make_sequence(output=[0] * n, temperature=1.0, seed=5)])[0] for n in range(40)}
    by_id = {sample(flat.clone(), [make_sequence(f"id-{n}", temperature=1.0)])[0] for n in range(40)}
    assert min(len(by_seed), len(by_position), len(by_id)) > 30
    assert seed_of("id-1") == seed_of("id-1") != seed_of("id-2")
    assert 0 <= seed_of("id-1") < 2**63


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -6.0])
    count = 20_000
    noise = gumbel_noise([(seed, position) for seed in range(count // 100) for position in range(100)], 5)
    drawn = torch.bincount((logits + noise).argmax(-1), minlength=5)
    expected = logits.softmax(-1) * count
    chi_square = float(((drawn - expected) ** 2 / expected).sum())
    assert chi_square < 18.5  # 0.1 % at 4 degrees of freedom; the draws are fixed, so this cannot flicker


def test_noise_is_uniform_and_independent_across_tokens() -> None:
    noise = gumbel_noise([(seed, 0) for seed in range(200)], 512).double()
    uniform = torch.exp(-torch.exp(-noise))
    counts = torch.histc(uniform, 64, 0, 1)
    expected = uniform.numel() / 64
    assert float(((counts - expected) ** 2 / expected).sum()) < 120  # 63 degrees of freedom
    left, right = uniform[:, :-1] - 0.5, uniform[:, 1:] - 0.5
    assert abs(float((left * right).mean() * 12)) < 0.01


def run(engine: Engine, *requests: tuple[str, SamplingParams]) -> dict[str, SequenceOutput]:
    for name, params in requests:
        segment = PromptSegment("", token_ids=(0, *random.Random(name[0]).sample(range(3, 384), 20)))
        engine.add(SequenceInput(name, (segment,), params))
    done: dict[str, SequenceOutput] = {}
    while engine.has_work():
        done.update((output.id, output) for output in engine.step() if output.finish is not None)
    return done


@pytest.mark.parametrize("blocks", [256, 8])
def test_same_seed_same_output_in_any_company(make_engine: MakeEngine, blocks: int) -> None:
    seeded = SamplingParams(max_tokens=30, temperature=1.0, top_p=0.95, seed=11, ignore_eos=True)
    alone = run(make_engine("llama"), ("a", seeded))["a"]
    other = SamplingParams(max_tokens=40, temperature=2.0, ignore_eos=True)
    engine = make_engine("llama", num_blocks=blocks, max_num_batched_tokens=16)
    greedy = SamplingParams(max_tokens=35, ignore_eos=True)
    # Of the three that fit at first the seeded one is the youngest, and so the first to be preempted.
    company = run(engine, ("b", other), ("c", greedy), ("a", seeded), ("d", other), ("e", other))
    assert company["a"].full_text == alone.full_text
    assert (engine.stats().num_preemptions > 0) == (blocks == 8)


def test_stop_token_ids_end_the_output_and_are_no_part_of_it(make_engine: MakeEngine) -> None:
    engine = make_engine("llama")
    free = run(engine, ("a", SamplingParams(max_tokens=12, ignore_eos=True)))["a"]
    ids = engine.generate(
        [[0, *random.Random("a").sample(range(3, 384), 20)]], SamplingParams(max_tokens=12, ignore_eos=True)
    )
    token_ids = ids[0].token_ids
    stop = next(i for i in range(3, 12) if token_ids[i] not in token_ids[:i])
    ended = run(engine, ("a", SamplingParams(max_tokens=12, stop_token_ids=(token_ids[stop],), ignore_eos=True)))["a"]
    assert ended.finish is FinishReason.STOP
    assert ended.num_output_tokens == stop + 1
    assert free.full_text.startswith(ended.full_text)
    assert token_ids[stop] not in ended.full_token_ids


def test_ignore_eos(make_engine: MakeEngine) -> None:
    want_eos = {"logit_bias": {1: 100.0}, "max_tokens": 5}
    done = run(
        make_engine("llama"),
        ("a", SamplingParams(**want_eos)),
        ("b", SamplingParams(**want_eos, ignore_eos=True)),
        ("c", SamplingParams(**want_eos, min_tokens=3)),
    )
    assert [(done[n].finish, done[n].num_output_tokens) for n in "abc"] == [
        (FinishReason.STOP, 1),
        (FinishReason.LENGTH, 5),
        (FinishReason.STOP, 4),
    ]
    # Five end tokens have no text, and no ids decode to a text without them.
    assert (done["b"].full_text, done["b"].full_token_ids) == ("", ())
