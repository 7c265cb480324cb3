"""The general path: any decoder-only model that transformers has code for, its attention computed by ours."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from parrot_kernels import CapturedStep, backend_for
from parrot_mq.errors import ConfigError
from parrot_workers.engine.models import attention
from parrot_workers.engine.models.attention import PagedStep, ShapeProbe, attention_backend
from parrot_workers.engine.models.model import PROBE_LEN, REMEDY, Probe, probe_ids
from parrot_workers.engine.models.model_config import eos_ids, longest
from parrot_workers.engine.models.reference import load_transformers
from parrot_workers.engine.paged_cache import LayerShape, PagedCache
from parrot_workers.engine.step_batch import StepBatch

_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})


class GeneralModel:
    """See ``Model``. Raises ConfigError, with a remedy, for a model whose attention is not what the engine computes."""

    def __init__(self, folder: Path, config: Any, *, dtype: torch.dtype, device: torch.device) -> None:
        self.name = str(folder)
        self.device = device
        self.dtype = dtype
        self._network = load_transformers(folder, config, dtype, attention.NAME).to(device)
        self._kernels = backend_for(device)
        self._picks_rows = "logits_to_keep" in inspect.signature(self._network.forward).parameters
        config = self._network.config.get_text_config()
        self.max_len = longest(config)
        self.eos_ids = eos_ids(folder, config)
        self.weight_bytes = _num_bytes(self._network)
        ids = probe_ids(config.vocab_size)
        self.layers = self._probe_layers(config, ids)
        self.probe = Probe(ids, self._reference_logits(ids), self)
        self.vocab_size = self.probe.logits.shape[0]

    def forward(self, batch: StepBatch, cache: PagedCache) -> Tensor:
        """Compute a step; see ``Model``."""
        with attention_backend(PagedStep(self._kernels, batch, cache)):
            return self._logits(batch.ids, batch.positions, batch.rows)

    def capture(self, full: StepBatch, cache: PagedCache, buckets: Sequence[int] = ()) -> CapturedStep | None:
        """Return None: transformers' code calls torch between our operations."""

    def _logits(self, ids: Tensor, positions: Tensor, rows: Tensor | None) -> Tensor:
        """Return float32 logits [num_rows, vocab_size] of a flat batch [num_tokens]; ``rows`` None: of all."""
        arguments: dict[str, Any] = {"logits_to_keep": rows} if self._picks_rows and rows is not None else {}
        logits: Tensor = self._network(
            input_ids=ids[None], position_ids=positions[None], use_cache=False, **arguments
        ).logits[0]
        if rows is not None and not arguments:
            logits = logits[rows]
        return logits.float()

    @torch.inference_mode()
    def _probe_layers(self, config: Any, ids: list[int]) -> dict[int, LayerShape]:
        probe = ShapeProbe()
        with attention_backend(probe):
            logits = self._logits(*self._flat(ids), rows=torch.tensor([0], device=self.device))
        if logits.shape[0] != 1:  # it knows logits_to_keep as a count alone
            self._picks_rows = False
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
    def _reference_logits(self, ids: list[int]) -> Tensor:
        self._network.set_attn_implementation("eager")
        try:
            return self._logits(*self._flat(ids), rows=None)[-1]
        finally:
            self._network.set_attn_implementation(attention.NAME)

    def _flat(self, ids: list[int]) -> tuple[Tensor, Tensor]:
        return torch.tensor(ids, device=self.device), torch.arange(PROBE_LEN, device=self.device)


def _num_bytes(network: torch.nn.Module) -> int:
    """Bytes of parameters and buffers; what is tied counts once."""
    tensors = [*network.parameters(), *network.buffers()]
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())
