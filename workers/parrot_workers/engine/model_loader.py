"""A decoder-only model as transformers loads it, checked for everything the engine assumes about it."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from parrot_mq.errors import ConfigError
from parrot_workers.engine import attention
from parrot_workers.engine.attention import REMEDY, LayerShape, ShapeProbe, attention_backend

_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_LENGTH_FIELDS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")
PROBE_LEN = 12


class LoadedModel:
    """A causal language model that runs flat batches through the engine's attention.

    ``layers`` are the attention layers by index, ``vocab_size`` the length of a row of logits, ``max_len`` the longest
    sequence the model knows positions for (None: unbounded).
    """

    def __init__(self, model: Any, name: str, device: torch.device) -> None:
        self.model = model
        self.name = name
        self.device = device
        self.dtype: torch.dtype = model.dtype
        config = model.config.get_text_config()
        self._picks_rows = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.max_len = _max_len(config)
        self.eos_ids = _eos_ids(model)
        self.probe_ids = torch.arange(PROBE_LEN, device=device) * 7 % min(config.vocab_size, 97)
        self.layers = self._probe_layers(config)
        self.reference = self._reference_logits()
        """Logits [vocab_size] in float32 after ``probe_ids``, by the model's own eager attention."""
        self.vocab_size = self.reference.shape[0]

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights and buffers, tied ones counted once."""
        tensors = {tensor.data_ptr(): tensor.nbytes for tensor in [*self.model.parameters(), *self.model.buffers()]}
        return sum(tensors.values())

    def forward(self, input_ids: Tensor, positions: Tensor, rows: Tensor | None) -> Tensor:
        """Return logits [num_rows, vocab_size] of a flat batch [num_tokens], all rows where ``rows`` is None."""
        arguments: dict[str, Any] = {"logits_to_keep": rows} if self._picks_rows and rows is not None else {}
        logits: Tensor = self.model(
            input_ids=input_ids[None], position_ids=positions[None], use_cache=False, **arguments
        ).logits[0]
        if rows is not None and logits.shape[0] != rows.shape[0]:
            self._picks_rows = False
            logits = logits[rows]
        return logits

    def agrees(self, logits: Tensor) -> bool:
        """Whether ``logits`` after ``probe_ids`` are the reference's, up to the dtype's rounding."""
        expected, actual = self.reference, logits.float()
        if self.dtype == torch.float32:
            return bool((expected - actual).abs().max() <= 1e-3 * expected.abs().max() + 1e-5)
        expected, actual = expected - expected.mean(), actual - actual.mean()
        return bool(torch.nn.functional.cosine_similarity(expected, actual, dim=0) > 0.97)

    @torch.inference_mode()
    def _probe_layers(self, config: Any) -> dict[int, LayerShape]:
        probe = ShapeProbe()
        with attention_backend(probe):
            self.forward(self.probe_ids, torch.arange(PROBE_LEN, device=self.device), None)
        expected = config.num_hidden_layers
        if probe.num_calls != expected or len(probe.shapes) != expected:
            raise ConfigError(
                f"{self.name}: {probe.num_calls} attention calls for {expected} layers; the torch engine runs models "
                f"whose every layer is plain attention through transformers' attention interface: {REMEDY}"
            )
        for layer, kind in enumerate(getattr(config, "layer_types", None) or ()):
            shape = probe.shapes[layer]
            if kind not in _LAYER_TYPES or (kind == "sliding_attention" and shape.window is None):
                raise ConfigError(f"{self.name}: the torch engine does not run {kind} (layer {layer}): {REMEDY}")
        return probe.shapes

    @torch.inference_mode()
    def _reference_logits(self) -> Tensor:
        self.model.set_attn_implementation("eager")
        try:
            return self.forward(self.probe_ids, torch.arange(PROBE_LEN, device=self.device), None)[-1].float()
        finally:
            self.model.set_attn_implementation(attention.NAME)


def load_model(model: str, *, device: torch.device, dtype: str | torch.dtype) -> LoadedModel:
    """Load a model folder or id. Raises ConfigError, with a remedy, for anything the engine cannot run."""
    if ("/" not in model or model.startswith((".", "/", "~"))) and not Path(model).is_dir():
        raise ConfigError(f"there is no model folder {model!r}: give a Hugging Face folder, or owner/name of one")
    try:
        config = transformers.AutoConfig.from_pretrained(model)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{model!r} is no model that transformers can read: {error}") from error
    if getattr(config, "is_encoder_decoder", False):
        raise ConfigError(f"{model!r} is an encoder-decoder model, not decoder-only: {REMEDY}")
    if type(config) not in transformers.AutoModelForCausalLM._model_mapping:
        raise ConfigError(f"{model!r} ({config.model_type}) is no decoder-only language model: {REMEDY}")
    try:
        with _without_progress_bar():
            loaded = transformers.AutoModelForCausalLM.from_pretrained(
                model, dtype=parse_dtype(dtype), attn_implementation=attention.NAME
            )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise ConfigError(f"{model!r} cannot be loaded by the torch engine: {error}") from error
    network: torch.nn.Module = loaded
    return LoadedModel(network.to(device).eval().requires_grad_(False), model, device)


def parse_dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    """Return a torch dtype, or "auto" for the checkpoint's own. Raises ConfigError."""
    if isinstance(dtype, torch.dtype) or dtype == "auto":
        return dtype
    if dtype not in _DTYPES:
        raise ConfigError(f"dtype {dtype!r} is none of auto, {', '.join(_DTYPES)}")
    return _DTYPES[dtype]


@contextlib.contextmanager
def _without_progress_bar() -> Iterator[None]:
    logging: Any = transformers.utils.logging
    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()


def _max_len(config: Any) -> int | None:
    lengths = [length for field in _LENGTH_FIELDS if (length := getattr(config, field, None))][:1]
    rope = getattr(config, "rope_parameters", None) or {}
    for part in [rope] if "rope_type" in rope else rope.values():
        # Beyond this length the model turns all positions of the batch by other angles: no batch of several sequences,
        # and no cache, could follow.
        if isinstance(part, dict) and part.get("rope_type") == "longrope":
            lengths.append(part.get("original_max_position_embeddings") or config.original_max_position_embeddings)
    return min(lengths, default=None)


def _eos_ids(model: Any) -> frozenset[int]:
    eos = model.generation_config.eos_token_id
    if eos is None:
        eos = model.config.get_text_config().eos_token_id
    return frozenset([eos] if isinstance(eos, int) else eos or ())
