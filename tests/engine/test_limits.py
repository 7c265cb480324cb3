"""What an engine refuses: a sequence as INVALID output, a model or setting as ConfigError, both with a remedy."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from parrot_kernels.torch_backend import TorchBackend
from parrot_mq.errors import ConfigError
from parrot_mq.messages import SamplingParams
from parrot_workers.engine.engine import Engine
from parrot_workers.engine.models.model_config import parse_dtype
from parrot_workers.engine.port import FinishReason, PromptSegment, SequenceInput

MakeEngine = Callable[..., Engine]
TOO_LARGE = 384


def sequence(count: int, forced_ids: tuple[int, ...] = (), **sampling: Any) -> SequenceInput:
    segment = PromptSegment("", token_ids=tuple([0] + [5] * (count - 1)) if count else None)
    return SequenceInput("s", (segment,), SamplingParams(**sampling), forced_ids=forced_ids)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (sequence(160), "the prompt has 160 tokens.*shorten it to 159"),
        (sequence(60, max_tokens=90), "need 10 blocks.*engine has 6.*lower max_tokens"),
        (sequence(5, stop_token_ids=(2, TOO_LARGE)), "stop_token_ids holds token id 384.*ends at 383"),
        (sequence(5, logit_bias={TOO_LARGE: 1.0}), "logit_bias"),
        (sequence(5, forced_ids=(TOO_LARGE,)), "forced_ids"),
    ],
    ids=["prompt too long", "cache too small", "stop id", "bias", "forced ids"],
)
def test_a_sequence_that_cannot_run_is_invalid(make_engine: MakeEngine, source: SequenceInput, message: str) -> None:
    engine = make_engine("llama", num_blocks=6)
    engine.add(source)
    engine.add(SequenceInput("good", (PromptSegment("hello"),), SamplingParams(max_tokens=2)))
    outputs = []
    while engine.has_work():
        outputs += engine.step()
    [bad] = [output for output in outputs if output.id == "s"]
    assert bad.finish is FinishReason.INVALID
    assert re.search(message, bad.error)
    assert outputs[-1].id == "good"
    assert outputs[-1].finish is FinishReason.LENGTH


def test_an_empty_prompt_is_invalid(tmp_path: Path, model_folder: Callable[[str], Path]) -> None:
    folder = tmp_path / "nobos"
    transformers.AutoModelForCausalLM.from_pretrained(model_folder("llama")).save_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder("llama"))
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "post_processor": None}))
    engine = Engine(folder, num_blocks=8, calibrate=False)
    engine.add(sequence(0))
    [output] = engine.step()
    assert output.finish is FinishReason.INVALID
    assert "empty" in output.error


def test_text_that_is_no_unicode_is_invalid(make_engine: MakeEngine) -> None:
    [output] = make_engine("llama").generate("hello \ud800 world")
    assert output.finish is FinishReason.INVALID
    assert "character 6" in output.error


def test_rope_that_changes_with_length_bounds_the_length(tmp_path: Path, model_folder: Callable[[str], Path]) -> None:
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    config = transformers.Phi3Config(
        **SMALL, intermediate_size=16, max_position_embeddings=128, original_max_position_embeddings=32, pad_token_id=0,
        rope_parameters=rope,
    )  # fmt: skip
    folder = tmp_path / "phi3"
    transformers.Phi3ForCausalLM(config).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(model_folder("llama")).save_pretrained(folder)
    assert Engine(folder, num_blocks=8, calibrate=False).spec.max_model_len == 32


def test_the_models_length_ends_an_output(make_engine: MakeEngine) -> None:
    engine = make_engine("llama", max_model_len=32)
    [output] = engine.generate([[0] + [5] * 20], SamplingParams(max_tokens=500, ignore_eos=True))
    assert output.finish is FinishReason.LENGTH
    assert output.num_output_tokens == 32 - 21


def test_the_longest_sequence_that_fits_runs(make_engine: MakeEngine) -> None:
    engine = make_engine("llama", num_blocks=4)
    [output] = engine.generate([[0] + [5] * 40], SamplingParams(max_tokens=24, ignore_eos=True))
    assert output.num_output_tokens == 24


def test_two_sequences_of_one_id_are_the_callers_mistake(make_engine: MakeEngine) -> None:
    engine = make_engine("llama")
    engine.add(sequence(3))
    with pytest.raises(ValueError, match="already"):
        engine.add(sequence(3))


def test_generate_wants_an_idle_engine(make_engine: MakeEngine) -> None:
    engine = make_engine("llama")
    engine.add(sequence(3))
    with pytest.raises(ValueError, match="other work"):
        engine.generate("hello")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_num_seqs": 9, "max_num_batched_tokens": 8}, "at least max_num_seqs"),
        ({"max_model_len": 161}, "at most the model's own 160"),
        ({"kv_memory_bytes": 10, "num_blocks": None}, "raise kv_memory_bytes"),
        ({"dtype": "int3"}, "none of auto, float32"),
    ],
)
def test_settings_that_cannot_work(make_engine: MakeEngine, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_engine("llama", **settings)


def test_no_gpu(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="device='cpu'"):
        make_engine("llama", device="cuda")


def test_dtypes() -> None:
    assert parse_dtype("auto") is None
    assert parse_dtype("bfloat16") == parse_dtype(torch.bfloat16) == torch.bfloat16


def test_no_model_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no model folder.*give a Hugging Face folder"):
        Engine(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="no model that transformers can read"):
        Engine(tmp_path)


SMALL = {"vocab_size": 64, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}


def refused() -> dict[str, Callable[[], Any]]:
    return {
        "encoder-decoder": lambda: transformers.T5ForConditionalGeneration(
            transformers.T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
        ),
        "no causal self-attention": lambda: transformers.BertLMHeadModel(
            transformers.BertConfig(**SMALL, intermediate_size=16)
        ),
        "no decoder-only language model": lambda: transformers.ViTModel(
            transformers.ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
        ),
        "plain attention": lambda: transformers.MambaForCausalLM(
            transformers.MambaConfig(vocab_size=64, hidden_size=16, state_size=4, num_hidden_layers=2)
        ),
        "attention calls": lambda: transformers.BloomForCausalLM(
            transformers.BloomConfig(vocab_size=64, hidden_size=16, n_layer=2, n_head=2)
        ),
        "needs s_aux": lambda: transformers.GptOssForCausalLM(
            transformers.GptOssConfig(
                **SMALL,
                num_key_value_heads=2,
                head_dim=8,
                intermediate_size=16,
                num_local_experts=2,
                num_experts_per_tok=1,
            )
        ),
    }


@pytest.mark.parametrize("message", refused())
def test_models_that_the_engine_does_not_run(tmp_path: Path, message: str) -> None:
    refused()[message]().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=message):
        Engine(tmp_path)


@pytest.mark.parametrize("path", ["fast", "general"])
def test_a_model_whose_scores_we_do_not_reproduce(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    original = TorchBackend.paged_attention

    def wrong_scale(self: Any, *args: Any, scale: float, **rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return original(self, *args, scale=scale * 2, **rest)

    monkeypatch.setattr(TorchBackend, "paged_attention", wrong_scale)
    monkeypatch.setenv("PARROT_MQ_KERNELS", "torch")
    with pytest.raises(ConfigError, match="does not reproduce"):
        make_engine("llama", path=path)


def test_a_calibrated_cost_model(make_engine: MakeEngine) -> None:
    cost = make_engine("llama", calibrate=True).spec.cost
    assert cost.prefill_per_token_ms > 0
    assert cost.decode_step_ms(1, 16) > 0
    assert min(cost.decode_base_ms, cost.decode_per_seq_ms, cost.decode_per_context_token_ms) >= 0


def test_the_spec(make_engine: MakeEngine) -> None:
    spec = make_engine("llama").spec
    assert (spec.model, spec.kind, spec.max_model_len, spec.block_size, spec.num_blocks) == (
        "llama",
        "torch",
        160,
        16,
        256,
    )
    assert make_engine("llama", name="other", num_blocks=None).spec.num_blocks == 2 * 8 * 160 // 16
