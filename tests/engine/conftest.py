"""Tiny models in Hugging Face folders, made once and loaded through the engine's own loader."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers

from parrot_workers.engine.engine import Engine
from tests.engine.families import FAST, GENERAL, VOCAB_SIZE
from tests.kernels.conftest import device, pytest_collection_modifyitems  # noqa: F401 (a GPU, or the interpreter)

SENTENCES = [
    "The parrot repeats what the queue has said, word for word.",
    "A scheduler groups requests by prefix, and the engine drains them.",
    "Été, naïve, Größe, 日本語, emoji 🦜🦜 and other characters of many bytes.",
    "hello world, hello there, hello again; the end of the line.\n",
    "def publish(message): return queue.push(message)\n",
]
SMALL = {"max_num_seqs": 8, "num_blocks": 256, "calibrate": False, "speculate": False}


def build_tokenizer() -> tokenizers.Tokenizer:
    """A byte-level BPE tokenizer that puts BOS first."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<s>", "</s>", "<|im_end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer


def save(folder: Path, model: Any, tokenizer: tokenizers.Tokenizer) -> Path:
    model.save_pretrained(folder)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)
    return folder


def randomize(model: Any, seed: int) -> Any:
    """Give ``model`` float32 weights whose random outputs differ from token to token, norms and biases included."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.float().parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.25)
            else:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Give ``folder(kind)``: a random float32 model of that kind with a tokenizer, made at its first use."""
    folders: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in folders:
            model = randomize({**FAST, **GENERAL}[kind](), seed=zlib.crc32(kind.encode()))
            folders[kind] = save(tmp_path_factory.mktemp(kind) / kind, model, build_tokenizer())
        return folders[kind]

    return folder


@pytest.fixture(scope="session")
def make_engine(model_folder: Callable[[str], Path]) -> Callable[..., Engine]:
    """Give ``engine(kind, **settings)``: a new engine, small, without calibration or speculation."""

    def engine(kind: str = "llama", **settings: Any) -> Engine:
        return Engine(model_folder(kind), **{**SMALL, **settings})

    return engine


@pytest.fixture(scope="session")
def reference(model_folder: Callable[[str], Path]) -> Callable[[str], Any]:
    """Give ``model(kind)``: the same model in transformers, for comparison."""
    models: dict[str, Any] = {}

    def model(kind: str) -> Any:
        if kind not in models:
            # Eager: SDPA knows no soft-capped scores, and older versions left them out without a word.
            models[kind] = transformers.AutoModelForCausalLM.from_pretrained(
                model_folder(kind), attn_implementation="eager"
            ).eval()
        return models[kind]

    return model
