"""The two models that everything is measured on. Torch-free: the driver reads it too."""

from __future__ import annotations

import dataclasses
from pathlib import Path

MODELS_FOLDER = Path(__file__).parents[2] / ".parrot_mq" / "bench-engine"
"""Where models are kept once they are made; git ignores it."""
MAX_LEN = 2048
DTYPES = {"bf16": "bfloat16", "f32": "float32"}


@dataclasses.dataclass(frozen=True, slots=True)
class ModelShape:
    """A Llama. ``vocab_size`` counts the special tokens too; a tied head is the table of embeddings."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int = 64
    max_len: int = MAX_LEN
    is_tied: bool = False

    @property
    def num_weights(self) -> int:
        """All of them, norms left out."""
        return self.num_step_weights + (0 if self.is_tied else self.vocab_size * self.hidden_size)

    @property
    def num_step_weights(self) -> int:
        """Weights that a step reads: all but the table of embeddings, of which it reads a row a token."""
        attention = 2 * self.hidden_size * self.head_dim * (self.num_heads + self.num_kv_heads)
        return self.num_layers * (attention + 3 * self.hidden_size * self.intermediate_size) + (
            self.vocab_size * self.hidden_size
        )

    @property
    def kv_values_per_token(self) -> int:
        """Numbers that the KV cache keeps for a token."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim


SHAPES = {
    "s": ModelShape(4096, 512, 1408, 8, 8, 4),
    "l": ModelShape(32000, 1024, 4096, 24, 16, 8),
    "tiny": ModelShape(512, 64, 96, 2, 4, 2, head_dim=16),
}
"""``tiny`` is for trying the benchmark out."""
