"""A model split over several ranks (processes): which part each holds, and how their partial sums become one.

Tensor parallelism as in Megatron-LM (Shoeybi et al., 2019): queries, keys, values, gate and up are split by columns,
whole KV heads to a rank; the attention's output and down are split by rows, and what the ranks make of their parts is
summed. Embedding and head are held whole by every rank: they cost memory, and no communication.
"""

from __future__ import annotations

import dataclasses

import torch.distributed as dist
from torch import Tensor

from parrot_mq.errors import ConfigError, RankLost
from parrot_workers.engine.models.llama_shape import LlamaShape


@dataclasses.dataclass(frozen=True, slots=True)
class Shard:
    """The part of rank ``rank`` of ``size``; by default all of the model."""

    rank: int = 0
    size: int = 1

    def part(self, count: int, first: int = 0) -> slice:
        """Return this rank's share of ``count`` rows or columns from ``first`` on."""
        share = count // self.size
        return slice(first + self.rank * share, first + (self.rank + 1) * share)

    def of(self, shape: LlamaShape) -> LlamaShape:
        """Return the shape of this rank's part. Raises ConfigError if heads or the MLP's width do not divide."""
        counts = {
            "query heads": shape.num_heads,
            "key-value heads": shape.num_kv_heads,
            "columns of the MLP": shape.intermediate_size,
        }
        for name, count in counts.items():
            if count % self.size:
                fits = [str(size) for size in range(1, count + 1) if all(c % size == 0 for c in counts.values())]
                raise ConfigError(
                    f"{count} {name} cannot be split over tensor_parallel_size={self.size}: use {' or '.join(fits)}"
                )
        return dataclasses.replace(
            shape,
            num_heads=shape.num_heads // self.size,
            num_kv_heads=shape.num_kv_heads // self.size,
            intermediate_size=shape.intermediate_size // self.size,
        )

    def total(self, partial: Tensor) -> Tensor:
        """Return the sum of all ranks' ``partial``, which may be overwritten. Raises RankLost."""
        if self.size > 1:
            try:
                dist.all_reduce(partial)
            except RuntimeError as error:
                raise RankLost(f"rank {self.rank} of {self.size} lost the others: {error}") from error
        return partial
