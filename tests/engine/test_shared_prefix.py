"""A trained model answers the same, whether attention reads shared prefixes once or for each sequence."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from parrot_kernels import AttentionPlan
from parrot_kernels.gpu.calibration import calibrated_cost
from parrot_kernels.gpu.paged_attention import paged_attention
from parrot_kernels.gpu.sharing_cost import ENVIRONMENT, SharingCost
from parrot_kernels.torch_backend import TorchBackend
from parrot_mq.demo.meetings import make_meeting
from parrot_mq.demo.prompts import MAP
from parrot_mq.messages import SamplingParams
from parrot_workers.engine import step_batch
from parrot_workers.engine.engine import Engine
from parrot_workers.engine.models import llama
from parrot_workers.worker.options import DEMO_FOLDER

NUM_SEQS = 6


def prompts(count: int, num_common: int) -> list[str]:
    """Return requests for a note whose transcripts begin with the same lines, and end with one of their own."""
    chunks = [chunk.splitlines() for chunk in make_meeting(7, 24).chunks]
    common = [chunk[i % len(chunk)] for i, chunk in enumerate(chunks[:num_common])]
    before, after = MAP.replace("{{summary}}", "").split("{{chunk}}")
    return [before + "\n".join([*common, chunk[-1]]) + after for chunk in chunks[:count]]


def answers(device: str, num_seqs: int, num_common: int, max_tokens: int) -> list[tuple[int, ...]]:
    engine = Engine(
        DEMO_FOLDER, device=device, num_blocks=200, max_num_seqs=num_seqs, buckets=(num_seqs,), calibrate=False,
        speculate=False,
    )  # fmt: skip
    try:
        outputs = engine.generate(prompts(num_seqs, num_common), SamplingParams(max_tokens=max_tokens))
        engine.check()
    finally:
        engine.close()
    return [output.token_ids for output in outputs]


class AttentionByTriton(TorchBackend):
    """Torch, but for attention: the other kernels take the interpreter a minute, and share nothing."""

    paged_attention = staticmethod(paged_attention)


def test_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[AttentionPlan] = []

    def planned(share: bool) -> Callable[..., AttentionPlan]:
        def make(*args: object, **kwargs: object) -> AttentionPlan:
            made.append(AttentionPlan(*args, **kwargs, share=share))  # type: ignore[arg-type]
            return made[-1]

        return make

    results = []
    for share in (True, False):
        made.clear()
        monkeypatch.setattr(step_batch, "AttentionPlan", planned(share))
        results.append(answers("cpu", NUM_SEQS, 6, 60))
        decoding = [plan for plan in made if list(plan.query_lens) == [1] * NUM_SEQS]
        num_readers = [len(piece.rows) for plan in decoding for piece in plan.pieces]
        assert max(num_readers) == (NUM_SEQS if share else 1)
    assert results[0] == results[1]
    assert len(set(results[0])) > 1, "the prompts are all answered alike"


@pytest.mark.parametrize(
    ("device", "num_seqs", "num_common", "max_tokens"),
    [("cpu", 2, 2, 3), pytest.param("cuda", NUM_SEQS, 6, 60, marks=pytest.mark.gpu)],
    ids=["interpreted", "gpu"],
)
def test_by_triton(
    monkeypatch: pytest.MonkeyPatch, device: str, num_seqs: int, num_common: int, max_tokens: int
) -> None:
    if device == "cpu":
        monkeypatch.setattr(llama, "backend_for", lambda device: AttentionByTriton())
    asked: list[bool] = []

    def pays(cost: SharingCost, *_: object) -> bool:
        """Return whether it is allowed, for a toy's prefix hardly pays."""
        asked.append(cost.share)
        return cost.share

    monkeypatch.setattr(SharingCost, "pays", pays)
    results = []
    for word in ("on", "off"):
        asked.clear()
        monkeypatch.setenv(ENVIRONMENT, word)
        calibrated_cost.cache_clear()
        results.append(answers(device, num_seqs, num_common, max_tokens))
        assert set(asked) == {word == "on"}
    assert results[0] == results[1]
