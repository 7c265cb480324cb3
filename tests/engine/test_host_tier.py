"""Content that left the device comes back from host memory: same tokens, and the copies really happen."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from parrot_kernels.attention_plan import BLOCK_SIZE
from parrot_mq.messages import SamplingParams
from parrot_workers.engine.engine import Engine
from parrot_workers.engine.host_tier import Transfers
from parrot_workers.engine.kv_transfer import KVTransfer
from parrot_workers.engine.paged_cache import LayerShape, PagedCache
from parrot_workers.engine.port import PromptSegment, SequenceInput

MakeEngine = Callable[..., Engine]
GREEDY = SamplingParams(max_tokens=12, ignore_eos=True)
MIB = 2**20


class Watch(KVTransfer):
    """Counts what it copies."""

    def __init__(self, inner: KVTransfer) -> None:
        self.__dict__.update(inner.__dict__)
        self.num_stores = self.num_loads = 0

    def run(self, transfers: Transfers) -> None:
        self.num_stores += len(transfers.stores)
        self.num_loads += len(transfers.loads)
        super().run(transfers)


def make_prompts(count: int, seed: int = 0) -> list[list[int]]:
    dice = random.Random(seed)
    return [[0, *(dice.randrange(3, 384) for _ in range(dice.randint(40, 90)))] for _ in range(count)]


def watched(engine: Engine) -> Watch:
    assert engine._transfer is not None
    engine._transfer = engine._steps.transfer = watch = Watch(engine._transfer)
    return watch


def answers(engine: Engine, prompts: list[list[int]]) -> list[tuple[int, ...]]:
    """Answer the prompts one after the other, the books checked after each."""
    tokens = []
    for prompt in prompts:
        [output] = engine.generate([prompt], GREEDY)
        tokens.append(output.token_ids)
        engine.check()
    return tokens


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "gemma2"])
def test_same_tokens_with_and_without_host_memory(make_engine: MakeEngine, kind: str) -> None:
    prompts = make_prompts(6) * 2
    engine = make_engine(kind, num_blocks=12, host_kv_memory_bytes=MIB)
    watch = watched(engine)
    tokens = answers(engine, prompts)
    plain = make_engine(kind, num_blocks=12)
    assert tokens == answers(plain, prompts)
    stats = engine.stats()
    assert stats.num_reloaded_tokens == watch.num_loads * BLOCK_SIZE > 0
    assert watch.num_stores > 0
    # The whole second turn was found: all but each prompt's last, partly filled block.
    assert stats.num_cached_tokens >= sum((len(prompt) - 1) // BLOCK_SIZE * BLOCK_SIZE for prompt in prompts[6:])
    assert plain.stats().num_cached_tokens < stats.num_cached_tokens
    assert plain.stats().num_reloaded_tokens == 0


def test_preempted_sequences_come_back_by_copy(make_engine: MakeEngine) -> None:
    prompts = make_prompts(6, seed=3)
    settings: dict[str, Any] = {"num_blocks": 14, "max_num_seqs": 6}
    sampling = SamplingParams(max_tokens=40, ignore_eos=True)
    engine = make_engine("llama", host_kv_memory_bytes=MIB, **settings)
    watch = watched(engine)
    outputs = engine.generate(prompts, sampling)
    assert engine.stats().num_preemptions > 0
    assert watch.num_loads > 0
    expected = make_engine("llama", num_blocks=256).generate(prompts, sampling)
    assert [output.token_ids for output in outputs] == [output.token_ids for output in expected]


def test_a_failed_copy_loses_nothing(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = make_prompts(5, seed=4)
    engine = make_engine("llama", num_blocks=12, host_kv_memory_bytes=MIB)
    expected = answers(engine, prompts)
    transfer = engine._transfer
    assert transfer is not None
    with monkeypatch.context() as patched:
        patched.setattr(transfer, "_load", lambda slots, blocks: (_ for _ in ()).throw(MemoryError("no room")))
        engine.add(SequenceInput("s", (PromptSegment("", token_ids=tuple(prompts[0])),), GREEDY))
        with pytest.raises(MemoryError):
            engine.step()
    tokens: list[int] = []
    while engine.has_work():
        tokens += [token for output in engine.step() for token in output.token_ids]
        engine.check()
    assert tuple(tokens) == expected[0]


def test_no_tier_without_a_setting_or_without_a_prefix_cache(make_engine: MakeEngine) -> None:
    assert make_engine("llama")._transfer is None
    assert make_engine("llama", host_kv_memory_bytes=MIB, enable_prefix_caching=False)._transfer is None


def test_a_calibrated_tier(make_engine: MakeEngine) -> None:
    engine = make_engine("llama", host_kv_memory_bytes=MIB, calibrate=True)
    assert engine._blocks._tier is not None
    cost = engine._blocks._tier.cost
    assert cost.compute_block_ms == pytest.approx(engine.spec.cost.prefill_ms(BLOCK_SIZE))
    assert min(cost.fixed_ms, cost.copy_block_ms) >= 0
    assert answers(engine, make_prompts(2)) == answers(make_engine("llama"), make_prompts(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("staged_bytes", [1, 10**6])
def test_a_round_trip_of_every_layer(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, staged_bytes: int) -> None:
    monkeypatch.setattr("parrot_workers.engine.kv_transfer.STAGED_BYTES", staged_bytes)
    layers = {0: LayerShape(2, 8, 8), 1: LayerShape(1, 16, 4), 5: LayerShape(3, 4, 4)}
    cache = PagedCache(layers, 7, dtype, torch.device("cpu"))
    tensors = [*cache.keys.values(), *cache.values.values()]
    generator = torch.Generator().manual_seed(0)
    for tensor in tensors:
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    before = [tensor.clone() for tensor in tensors]
    transfer = KVTransfer(cache, 4)
    transfer.run(Transfers(stores=((5, 0), (1, 3), (2, 1))))
    for tensor in tensors:
        tensor.fill_(-1)
    # Slot 2 is stored to and read in the same round.
    transfer.run(Transfers(stores=((6, 2),), loads=((3, 1), (0, 4), (1, 0), (2, 3))))
    transfer.wait()
    for tensor, old in zip(tensors, before, strict=True):
        assert torch.equal(tensor[[1, 4, 0]], old[[1, 5, 2]])
        assert bool((tensor[[2, 3, 5, 6]] == -1).all())
    assert transfer.host_bytes == 4 * sum(tensor[0].nbytes for tensor in tensors)
