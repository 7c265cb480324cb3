"""With drafts forced on, every family on every path gives the tokens of transformers, however the work is cut.

``test_models_families`` has the same without drafts.
"""

from __future__ import annotations

from typing import Any

import pytest

from parrot_workers.engine.port import FinishReason, SequenceOutput
from parrot_workers.engine.step_stats import StepStats
from tests.engine.test_engine import MakeEngine, Reference, add, drain, expected, make_prompts, tokens
from tests.engine.test_models_families import PATHS
from tests.engine.test_speculation import foresee

SETTINGS: dict[str, dict[str, Any]] = {
    "roomy": {"num_blocks": 400, "max_num_batched_tokens": 64},
    "tight": {"num_blocks": 12, "max_num_batched_tokens": 13},
    "unshared": {"num_blocks": 400, "max_num_batched_tokens": 24, "enable_prefix_caching": False},
}


@pytest.mark.parametrize(("kind", "path"), PATHS)
@pytest.mark.parametrize("case", SETTINGS)
def test_drafts_change_no_token(
    make_engine: MakeEngine, reference: Reference, monkeypatch: pytest.MonkeyPatch, kind: str, path: str, case: str
) -> None:
    prompts = make_prompts(8, shared=35, seed=5, longest=50)
    foresee(monkeypatch, {tuple(prompt): expected(reference, kind, prompt) for prompt in prompts})
    steps: list[StepStats] = []
    engine = make_engine(kind, path=path, speculate=True, on_step=steps.append, **SETTINGS[case])
    outputs: dict[str, list[SequenceOutput]] = {}

    def run(num_steps: int) -> None:
        for _ in range(num_steps):
            for output in engine.step():
                outputs.setdefault(output.id, []).append(output)
            engine.check()

    # They come while others run, and one of them leaves.
    for index, prompt in enumerate(prompts):
        add(engine, str(index), prompt)
        run(2)
    add(engine, "gone", prompts[0])
    run(4)
    engine.abort("gone")
    for name, rest in drain(engine).items():
        outputs.setdefault(name, []).extend(rest)

    for index, prompt in enumerate(prompts):
        assert tokens(outputs[str(index)]) == expected(reference, kind, prompt)
    assert outputs["gone"][-1].finish is FinishReason.ABORTED
    assert tokens(outputs["gone"]) == expected(reference, kind, prompts[0])[: len(tokens(outputs["gone"]))]
    counts = [step.counts for step in steps]
    accepting = [index for index, count in enumerate(counts) if count.num_accepted_tokens]
    assert accepting
    assert any(count.num_accepted_tokens < count.num_draft_tokens for count in counts), "no draft was rejected"
    assert any(count.num_accepted_tokens and count.num_prefill_tokens for count in counts), "no step was mixed"
    assert any(count.num_preemptions for count in counts[accepting[0] :]) == (case == "tight")
    assert (engine.stats().num_cached_tokens > 0) == (case != "unshared")
    assert engine.stats().num_free_blocks == engine.stats().num_blocks
