"""Rotary position embeddings, tabulated once for all positions of a model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

ROPE_TYPES = frozenset({"default", "linear", "dynamic", "yarn", "llama3", "longrope"})
"""Variants whose angles are a function of the position alone, up to the model's length."""


def rotary_tables(config: Any, head_dim: int, num_positions: int) -> tuple[Tensor, Tensor]:
    """Return cos and sin [num_positions, half] in float32; the first 2 * half dimensions of a head are rotated.

    Frequencies and the factor on both tables are transformers'.
    """
    parameters = config.rope_parameters
    rope_type = parameters["rope_type"]
    if rope_type == "default":
        frequencies, factor = _default_frequencies(parameters, head_dim), 1.0
    else:
        frequencies, factor = ROPE_INIT_FUNCTIONS[rope_type](config, torch.device("cpu"))
    angles = torch.arange(num_positions, dtype=torch.float32)[:, None] * frequencies.float()
    return angles.cos() * factor, angles.sin() * factor


def _default_frequencies(parameters: dict[str, Any], head_dim: int) -> Tensor:
    dim = int(head_dim * parameters.get("partial_rotary_factor", 1.0))
    exponents = torch.arange(0, dim, 2, dtype=torch.int64).float() / dim
    return 1.0 / (float(parameters["rope_theta"]) ** exponents)
