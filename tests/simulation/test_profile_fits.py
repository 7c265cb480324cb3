"""Profiles against what the reference published: its seconds, and its two figures of capacity.

The seconds are means of the runs in its artifact (microsoft/ParrotServe, branch artifact). Shapes are counted, not
those of its captions: its documents, cut by its own rule and tokenised with LLaMA's tokenizer, give chunks of about
half the stated tokens, because the rule counts a beginning-of-sequence token for each word. What is fitted to what,
and what is predicted, is in docs/scheduling.md.
"""

from __future__ import annotations

import dataclasses

import pytest

from parrot_mq.messages import CostModel, RequestShape
from parrot_workers.simulation.profiles import load_profile

A100_13B = load_profile("a100-13b")
VLLM_13B = load_profile("a100-13b-vllm")
A100_7B = load_profile("a100-7b")
A6000_7B = load_profile("a6000-7b")

NETWORK_MS = 244
"""Mean round trip of the reference's clients to its baseline."""


@dataclasses.dataclass(frozen=True)
class Documents:
    """Mean number of chunks of a document, and of tokens of a chunk."""

    num_chunks: float
    chunk_tokens: float


CHUNKED = {512: Documents(131.4, 237), 1024: Documents(65.8, 474), 1536: Documents(44, 709), 2048: Documents(33.1, 943)}
MAP_PROMPT, REFINE_PROMPT, REDUCE_PROMPT = 31, 97, 34
"""Tokens of the templates."""
SHAREGPT = RequestShape(prompt_tokens=161, output_tokens=338)
"""Mean lengths of ShareGPT's requests (Kwon et al. 2023, figure 11), of which the reference drew its own."""
EVEN = RequestShape(prompt_tokens=240, output_tokens=230)
"""Nearly as many tokens in all, to see how much hangs on the lengths."""


def call_ms(cost: CostModel, prompt_tokens: float, output_tokens: int) -> float:
    """Return the time of a request that is alone in the engine."""
    return cost.prefill_ms(prompt_tokens) + output_tokens * cost.decode_step_ms(1, prompt_tokens + output_tokens / 2)


@pytest.mark.parametrize(
    ("chunk", "output", "published_s"),
    [
        (1024, 25, 41.7), (1024, 50, 76.2), (1024, 75, 110.8), (1024, 100, 145.8),
        (512, 50, 145.7), (1536, 50, 53.2), (2048, 50, 41.6),
    ],
)  # fmt: skip
def test_chains_on_the_reference_engine(chunk: int, output: int, published_s: float) -> None:
    documents = CHUNKED[chunk]
    prompt = documents.chunk_tokens + REFINE_PROMPT + output
    predicted_s = documents.num_chunks * call_ms(A100_13B.cost, prompt, output) / 1000
    assert predicted_s == pytest.approx(published_s, rel=0.05)


@pytest.mark.parametrize(
    ("chunk", "output", "published_s"),
    [(1024, 25, 56.5), (1024, 50, 91.3), (512, 50, 176.3), (1536, 50, 63.0), (2048, 50, 48.9)],
)
def test_chains_on_vllm_with_a_round_trip_for_each_call(chunk: int, output: int, published_s: float) -> None:
    """Not those of 75 and 100 tokens: in some of these runs the published times are twice those beside them."""
    documents = CHUNKED[chunk]
    prompt = documents.chunk_tokens + REFINE_PROMPT + output
    predicted_s = documents.num_chunks * (call_ms(VLLM_13B.cost, prompt, output) + NETWORK_MS) / 1000
    assert predicted_s == pytest.approx(published_s, rel=0.02)


MAP_REDUCE_S = {25: 6.70, 50: 8.50, 75: 10.50, 100: 12.60}
"""Of the eight documents that fit the engine's memory at once: 56.8 chunks of 465 tokens."""


def map_reduce_s(cost: CostModel, documents: Documents, output: int) -> float:
    """Return the time of all maps in one batch, and of the reduction behind it."""
    prompt = documents.chunk_tokens + MAP_PROMPT
    batch = documents.num_chunks
    maps_ms = batch * cost.prefill_ms(prompt) + output * cost.decode_step_ms(batch, batch * (prompt + output / 2))
    return (maps_ms + call_ms(cost, REDUCE_PROMPT + batch * output, output)) / 1000


def test_map_reduce_in_one_batch_on_the_reference_engine() -> None:
    """A run takes some 0.6 s beside its steps, which no cost of a step is."""
    predicted_s = {output: map_reduce_s(A100_13B.cost, Documents(56.75, 465), output) for output in MAP_REDUCE_S}
    for output, published_s in MAP_REDUCE_S.items():
        assert 0.2 < published_s - predicted_s[output] < 0.8
    per_token_s = (predicted_s[100] - predicted_s[25]) / 75
    assert per_token_s == pytest.approx((MAP_REDUCE_S[100] - MAP_REDUCE_S[25]) / 75, rel=0.05)


@pytest.mark.parametrize(
    ("chunk", "output", "published_s"),
    [
        (1024, 25, 12.8), (1024, 50, 19.4), (1024, 75, 26.8), (1024, 100, 34.3),
        (512, 50, 23.8), (1536, 50, 18.5), (2048, 50, 18.4),
    ],
)  # fmt: skip
def test_map_reduce_on_vllm_held_to_4096_tokens(chunk: int, output: int, published_s: float) -> None:
    """The memory stays full of maps until they are done; the reduction reads what fits of their outputs."""
    cost, documents, capacity = VLLM_13B.cost, CHUNKED[chunk], 4096
    prompt = documents.chunk_tokens + MAP_PROMPT
    batch = capacity / (prompt + output / 2)
    maps_ms = documents.num_chunks * (cost.prefill_ms(prompt) + output / batch * cost.decode_step_ms(batch, capacity))
    reduction_ms = call_ms(cost, min(REDUCE_PROMPT + documents.num_chunks * output, capacity - output - 100), output)
    assert (maps_ms + reduction_ms + 2 * NETWORK_MS) / 1000 == pytest.approx(published_s, rel=0.1)


@pytest.mark.parametrize(
    ("batch", "output", "published_s"),
    [
        (32, 200, 91.6), (32, 400, 151.0), (32, 600, 214.4), (32, 800, 282.6),
        (64, 100, 56.8), (64, 200, 79.1), (64, 300, 102.4), (64, 400, 126.5), (64, 480, 146.4),
    ],
)  # fmt: skip
def test_a_shared_prefix_is_read_once(batch: int, output: int, published_s: float) -> None:
    """288 prompts of 6,167 tokens, of which 5,107 are the same, one batch after the other."""
    cost, prompt, shared = A100_7B.cost, 6167, 5107
    batches = [batch] * (288 // batch) + [288 % batch] * (288 % batch > 0)
    predicted_ms = cost.prefill_ms(shared) + sum(
        size * cost.prefill_ms(prompt - shared, shared)
        + output * cost.decode_step_ms(size, size * (prompt + output / 2), (size - 1) * shared)
        for size in batches
    )
    assert predicted_ms / 1000 == pytest.approx(published_s, rel=0.03)


@pytest.mark.parametrize(("rate", "published_ms"), [(1, 32.0), (2, 34.8), (4, 44.0)])
def test_four_applications_on_four_engines(rate: float, published_ms: float) -> None:
    """Each on an engine of its own: requests a second and their time give the number that run at once (Little)."""
    cost = A6000_7B.cost
    times_ms = []
    for shared, query, output in ((7437, 7, 704), (1116, 8, 89), (1694, 4, 631), (2031, 4, 416)):
        shape = RequestShape(shared + query, output, cached_tokens=shared)
        tpot_ms = cost.steady_tpot_ms(1, shape)
        for _ in range(100):
            tpot_ms = cost.steady_tpot_ms(max(1.0, rate / 4 * output * tpot_ms / 1000), shape)
        times_ms.append(tpot_ms + cost.prefill_ms(query, shared) / output)
    assert sum(times_ms) / 4 == pytest.approx(published_ms, rel=0.05)


@pytest.mark.parametrize("shape", [SHAREGPT, EVEN])
def test_the_tokens_that_keep_the_time_per_token_under_40_ms(shape: RequestShape) -> None:
    """The reference measured about 6,144 on vLLM, with requests drawn from ShareGPT. Nothing here is fitted to that."""
    assert VLLM_13B.cost.capacity_tokens(40, shape) == pytest.approx(6144, rel=0.15)
    assert A100_13B.cost.capacity_tokens(40, shape) > 2 * 6144, "its own engine spends less on each sequence"


@pytest.mark.parametrize("shape", [SHAREGPT, EVEN])
def test_a_strict_latency_request_leaves_2000_of_64000_tokens(shape: RequestShape) -> None:
    """64,000 tokens fit the memory. The reference does not say how strict: a quarter slower than alone gives 2,000.

    The same tokens make its own engine a tenth slower than alone.
    """
    assert VLLM_13B.kv_tokens == A100_13B.kv_tokens == 64_000
    for profile, slowdown in ((VLLM_13B, 1.25), (A100_13B, 1.1)):
        strict_ms = slowdown * profile.cost.steady_tpot_ms(1, shape)
        assert profile.cost.capacity_tokens(strict_ms, shape) == pytest.approx(2000, rel=0.15)
    full_ms = VLLM_13B.cost.steady_tpot_ms(64_000 / shape.context_tokens, shape)
    assert full_ms > 5 * 40, "what a batch of 64,000 tokens makes of a strict request"


@pytest.mark.parametrize(
    ("profile", "weight_bytes", "token_bytes", "bytes_per_s", "memory_bytes"),
    [
        (A100_13B, 2 * 13.02e9, 2 * 2 * 40 * 5120, 1935e9, 80 * 2**30),
        (A100_7B, 2 * 6.74e9, 2 * 2 * 32 * 4096, 1935e9, 80 * 2**30),
        (A6000_7B, 2 * 6.74e9, 2 * 2 * 32 * 4096, 768e9, 48 * 2**30),
        (load_profile("h200-8b"), 2 * 8.03e9, 2 * 2 * 32 * 8 * 128, 4.8e12, 141e9),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_no_profile_is_faster_than_its_hardware(
    profile: object, weight_bytes: float, token_bytes: int, bytes_per_s: float, memory_bytes: float
) -> None:
    assert isinstance(profile, type(A100_13B))
    cost = profile.cost
    assert cost.decode_base_ms > 1000 * weight_bytes / bytes_per_s
    assert cost.decode_per_context_token_ms == pytest.approx(1000 * token_bytes / bytes_per_s, rel=0.2)
    assert cost.decode_per_context_token_ms > 0.99 * 1000 * token_bytes / bytes_per_s
    assert weight_bytes + profile.kv_tokens * token_bytes < 0.95 * memory_bytes
