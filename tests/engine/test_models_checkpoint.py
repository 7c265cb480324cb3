"""Reading weights: files and shards, tied and fused tensors, dtypes, and what is wrong with a folder, by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from torch import Tensor

from parrot_mq.errors import ConfigError
from parrot_workers.engine.models.checkpoint import INDEX_FILE, SINGLE_FILE, Checkpoint
from parrot_workers.engine.models.load import load_model
from parrot_workers.engine.models.model import Model
from parrot_workers.engine.step_batch import Span
from tests.engine.families import VOCAB_SIZE
from tests.engine.test_models_families import make_runner

Folder = Callable[[str], Path]
SPANS = [Span([5, 9, 300, 4], 0, 4, [2])]
DOWN = "model.layers.1.mlp.down_proj.weight"


def load(folder: Path, path: str = "auto", **settings: Any) -> Model:
    return load_model(str(folder), device=torch.device("cpu"), path=path, **settings)


@pytest.fixture
def copy(model_folder: Folder, tmp_path: Path) -> Callable[[str], Path]:
    """Give ``copy(kind)``: a model folder that may be spoilt."""

    def make(kind: str) -> Path:
        return Path(shutil.copytree(model_folder(kind), tmp_path / kind))

    return make


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = safetensors.torch.load_file(folder / SINGLE_FILE)
    change(tensors)
    safetensors.torch.save_file(tensors, folder / SINGLE_FILE, metadata={"format": "pt"})


@pytest.mark.parametrize("kind", ["llama", "qwen3", "phi3", "gpt2"])
@pytest.mark.parametrize("path", ["auto", "general"])
def test_shards(model_folder: Folder, tmp_path: Path, kind: str, path: str) -> None:
    transformers.AutoModelForCausalLM.from_pretrained(model_folder(kind)).save_pretrained(
        tmp_path, max_shard_size="40KB"
    )
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    whole, sharded = make_runner(model_folder(kind), path), make_runner(tmp_path, path)
    sharded.verify()
    assert torch.equal(sharded.run(SPANS), whole.run(SPANS))


@pytest.mark.parametrize("with_head", [True, False])
def test_tied_weights(copy: Callable[[str], Path], with_head: bool) -> None:
    folder = copy("qwen3")
    expected = make_runner(folder, "general").run(SPANS)
    if with_head:
        # A head of its own that nobody may look at.
        rewrite(folder, lambda tensors: tensors.update({"lm_head.weight": torch.zeros(VOCAB_SIZE, 32)}))
    torch.testing.assert_close(make_runner(folder, "fast").run(SPANS), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("path", ["fast", "general"])
def test_the_checkpoints_own_dtype(model_folder: Folder, tmp_path: Path, dtype: torch.dtype, path: str) -> None:
    transformers.AutoModelForCausalLM.from_pretrained(model_folder("llama"), dtype=dtype).save_pretrained(tmp_path)
    assert load(tmp_path, path).dtype == dtype
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("dtype")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load(tmp_path, path).dtype == dtype
    model = load(tmp_path, path, dtype="float32")
    assert model.dtype == torch.float32


def test_weights_are_counted_as_they_are_held(model_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARROT_MQ_KERNELS", "torch")  # which packs nothing, so pads nothing
    untied, tied = load(model_folder("llama"), "fast"), load(model_folder("qwen3"), "fast")
    count = Checkpoint(model_folder("llama")).num_elements()
    assert untied.weight_bytes == 4 * (count + 2 * 160 * 4)
    count = Checkpoint(model_folder("qwen3")).num_elements()
    assert tied.weight_bytes == 4 * (count + 2 * 160 * 8)  # the embedding is the head
    assert load(model_folder("qwen3"), "general").weight_bytes == pytest.approx(4 * count, abs=4 * 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(DOWN), rf"lacks the tensor {DOWN} \[48, 64\]"),
        (lambda tensors: tensors.update({DOWN: torch.zeros(48, 63)}), rf"{DOWN} has the shape \[48, 63\].*\[48, 64\]"),
        (lambda tensors: tensors.update({DOWN: torch.zeros(48, 64, dtype=torch.int8)}), f"{DOWN} is of dtype I8"),
        (lambda tensors: tensors.update({"model.layers.2.x": torch.zeros(1)}), "does not speak of: model.layers.2.x"),
        (lambda tensors: tensors.pop("lm_head.weight"), "lacks the tensor lm_head.weight"),
    ],
    ids=["missing", "shape", "dtype", "unexpected", "no head"],
)
def test_tensors_that_do_not_fit(
    copy: Callable[[str], Path], change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    folder = copy("llama")
    rewrite(folder, change)
    with pytest.raises(ConfigError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("transformer.h.1.mlp.c_proj.weight"), "lacks tensors.*h.1.mlp.c_proj.weight"),
        (
            lambda tensors: tensors.update({"transformer.h.1.mlp.c_proj.bias": torch.zeros(31)}),
            r"h.1.mlp.c_proj.bias \[32\] \(it is \[31\]\)",
        ),
    ],
    ids=["missing", "shape"],
)
def test_transformers_code_draws_no_weights_at_random(
    copy: Callable[[str], Path], change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    folder = copy("gpt2")
    rewrite(folder, change)
    with pytest.raises(ConfigError, match=message):
        load(folder)


def test_unread_tensors_of_the_general_path_are_worth_a_warning(
    copy: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = copy("gpt2")
    rewrite(folder, lambda tensors: tensors.update({"transformer.h.9.x": torch.zeros(1)}))
    load(folder)
    assert "does not speak of: transformer.h.9.x" in caplog.text


def test_inverse_frequencies_of_old_checkpoints_are_ignored(copy: Callable[[str], Path]) -> None:
    folder = copy("llama")
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(folder, lambda tensors: tensors.update({name: torch.zeros(4)}))
    make_runner(folder, "fast").verify()


def _pickle(folder: Path) -> None:
    torch.save(safetensors.torch.load_file(folder / SINGLE_FILE), folder / "pytorch_model.bin")
    (folder / SINGLE_FILE).unlink()


def _index(folder: Path, weight_map: object) -> None:
    (folder / SINGLE_FILE).rename(folder / "model-9.safetensors")
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_pickle, r"pickled weights.*save_pretrained"),
        (lambda folder: (folder / SINGLE_FILE).unlink(), "no model.safetensors and no"),
        (lambda folder: (folder / SINGLE_FILE).write_bytes(b"\x10" * 40), "no whole safetensors file"),
        (lambda folder: _index(folder, {"a": "model-1.safetensors"}), "lacks model-1.safetensors: copy or download"),
        (lambda folder: _index(folder, {"a": "model-9.safetensors"}), "lacks a, which the index says"),
        (lambda folder: _index(folder, 3), "no index of safetensors files"),
    ],
    ids=["pickle", "nothing", "corrupt", "missing shard", "lying index", "no index"],
)
def test_folders_that_cannot_be_read(
    copy: Callable[[str], Path], kind: str, spoil: Callable[[Path], object], message: str
) -> None:
    folder = copy(kind)
    spoil(folder)
    with pytest.raises(ConfigError, match=message):
        load(folder)


def test_a_truncated_file(copy: Callable[[str], Path]) -> None:
    folder = copy("llama")
    content = (folder / SINGLE_FILE).read_bytes()
    (folder / SINGLE_FILE).write_bytes(content[: len(content) // 2])
    with pytest.raises(ConfigError, match="no whole safetensors file"):
        load(folder)


def test_rows_and_columns_of_a_tensor(tmp_path: Path) -> None:
    matrix = torch.arange(24.0).view(4, 6)
    safetensors.torch.save_file({"m": matrix, "v": matrix[0].clone()}, tmp_path / SINGLE_FILE)
    checkpoint = Checkpoint(tmp_path)
    part = checkpoint.read("m", torch.float32, rows=slice(1, 3), columns=slice(2, 5))
    assert torch.equal(part, matrix[1:3, 2:5])
    assert part.is_contiguous()
    assert torch.equal(checkpoint.read("v", torch.float32, rows=slice(2, 4)), matrix[0, 2:4])
    checkpoint.release()
    assert torch.equal(checkpoint.read("m", torch.float64), matrix.double())
    assert "m" in checkpoint
    assert "n" not in checkpoint


def test_a_model_id_is_a_folder_of_the_cache(
    model_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: str(model_folder("llama")))
    model = load_model("owner/name", device=torch.device("cpu"))
    assert model.vocab_size == VOCAB_SIZE

    def offline(name: str, **_: Any) -> str:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(ConfigError, match="'owner/name' is no folder here, and it cannot be fetched: no network"):
        load_model("owner/name", device=torch.device("cpu"))
