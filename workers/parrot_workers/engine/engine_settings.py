"""What an engine is made with."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from parrot_kernels.fp8 import FP8
from parrot_mq.errors import ConfigError
from parrot_workers.engine.models.load import DEFAULT_MAX_MODEL_LEN, ModelPath
from parrot_workers.engine.speculator import MAX_DRAFT
from parrot_workers.engine.step_batch import buckets_up_to

MAX_CAPTURED = 256
"""Tokens: the launches of a larger step take less time than its computation, which hides them."""


@dataclasses.dataclass(frozen=True, slots=True)
class EngineSettings:
    """Settings that agree with each other. Raises ConfigError, with a remedy, for those that do not.

    What depends on the model is checked once that is loaded.
    """

    model: str | Path
    """A folder or an id."""
    _: dataclasses.KW_ONLY
    name: str = ""
    """What requests call the model; by default the folder's name, or the id."""
    device: str = "cpu"
    """"cpu", "cuda" (the first GPU) or "cuda:N"."""
    dtype: str | torch.dtype = "auto"
    path: str = ModelPath.AUTO
    """Who computes the model: "fast" our own code for the Llama family, "general" transformers', "auto" what fits."""
    tensor_parallel_size: int = 1
    """Above 1 as many processes compute a model of the fast path together: on the GPUs from ``device`` on, or on the
    CPU, with ``num_threads`` and a cache each (see ``RankGroup`` for what that asks of a script)."""
    max_num_seqs: int = 32
    max_num_batched_tokens: int = 512
    """Bounds a step's tokens, so that a long prompt does not hold up running outputs."""
    kv_dtype: str = "auto"
    """Of the KV cache: "auto" is the model's, "fp8" is float8_e4m3fn with scales measured at the start: half the memory
    of bfloat16 and half the reading, for a little accuracy."""
    memory_share: float | None = None
    """The part of the device's memory, as much as is free once the model is loaded, that the cache, the steps and what
    is captured of them may take; by default see ``memory``."""
    kv_memory_bytes: int | None = None
    """The cache gets as many blocks as these hold; by default see ``memory.num_blocks``."""
    host_kv_memory_bytes: int | None = None
    """Host memory for content that the cache gives away; by default see ``memory.num_host_slots``."""
    num_blocks: int | None = None
    """Instead of ``kv_memory_bytes``."""
    max_model_len: int | None = None
    buckets: tuple[int, ...] | None = None
    """Numbers of tokens that a step is padded to and, on a GPU, captured for; () runs all steps of a GPU eagerly, which
    starts faster and takes less memory. By default see ``step_buckets``."""
    num_threads: int | None = None
    """``torch.set_num_threads``, which is process-wide."""
    enable_prefix_caching: bool = True
    speculate: bool = True
    """Let sequences verify drafts copied from their own text where the cost model expects a gain; outputs are the same
    either way."""
    run_ahead: bool | None = None
    """Launch the next step before the tokens of this one are read, where it can be planned without them; outputs are
    the same either way. By default on a GPU alone: on a CPU it is the host that computes."""
    calibrate: bool = True
    """False keeps the default cost model and starts faster."""
    profile: str | Path | None = None
    """A folder for a trace of some steps."""

    def __post_init__(self) -> None:
        if self.max_num_seqs < 1 or self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"max_num_seqs ({self.max_num_seqs}) must be at least 1, and max_num_batched_tokens "
                f"({self.max_num_batched_tokens}) at least max_num_seqs, for each decodes a token"
            )
        if self.tensor_parallel_size < 1 or (self.tensor_parallel_size > 1 and self.host_kv_memory_bytes):
            raise ConfigError(
                f"tensor_parallel_size ({self.tensor_parallel_size}) must be at least 1; above 1 there is no host "
                "tier: leave host_kv_memory_bytes out"
            )
        if self.run_ahead and self.tensor_parallel_size > 1:
            raise ConfigError("run_ahead is for a model in one process: leave it out, or set tensor_parallel_size=1")
        if self.kv_dtype not in ("auto", "fp8"):
            raise ConfigError(f"kv_dtype {self.kv_dtype!r} is none of auto, fp8")
        if self.buckets is not None and min(self.buckets, default=1) < 1:
            raise ConfigError(f"buckets {self.buckets} are numbers of tokens, of at least 1")
        if self.memory_share is not None and not 0 < self.memory_share <= 1:
            raise ConfigError(f"memory_share {self.memory_share} must be above 0 and at most 1")
        if self.place.type == "cuda":
            self._check_gpus()

    def _check_gpus(self) -> None:
        if not torch.cuda.is_available():
            raise ConfigError(
                f"device {self.device!r} was asked for, but torch sees no GPU: use device='cpu', or a CUDA build"
            )
        last, count = self.rank_place(self.tensor_parallel_size - 1).index, torch.cuda.device_count()
        if last >= count:
            several = f"with tensor_parallel_size={self.tensor_parallel_size} " if self.tensor_parallel_size > 1 else ""
            raise ConfigError(
                f"device {self.device!r} {several}needs more GPUs than there are: torch sees cuda:0 to cuda:{count - 1}"
            )

    @property
    def served_name(self) -> str:
        """What requests call the model."""
        return self.name or (Path(self.model).name if Path(self.model).is_dir() else str(self.model))

    @property
    def max_num_rows(self) -> int:
        """Rows of logits that a step may want: each sequence's next token, and those that verify its draft."""
        most = self.max_num_seqs * (1 + (MAX_DRAFT if self.speculate else 0))
        return min(most, self.max_num_batched_tokens)

    @property
    def step_buckets(self) -> tuple[int, ...]:
        """``buckets``; by default, on one GPU, for all steps that only decode, as far as capturing them pays."""
        if self.buckets is not None:
            return self.buckets
        # Several ranks compute eagerly, and a CPU any number of tokens.
        captures = self.place.type == "cuda" and self.tensor_parallel_size == 1
        return tuple(buckets_up_to(min(self.max_num_rows, MAX_CAPTURED))) if captures else ()

    @property
    def place(self) -> torch.device:
        """The device, the first rank's of several; a GPU always by its number."""
        return self.rank_place(0)

    def rank_place(self, rank: int) -> torch.device:
        """Return the device of one of several ranks: on GPUs each has its own, from the first's on."""
        try:
            device = torch.device(self.device)
        except RuntimeError as error:
            raise ConfigError(f"device {self.device!r} is none that torch knows: use cpu or cuda:N") from error
        return torch.device("cuda", (device.index or 0) + rank) if device.type == "cuda" else device

    def cache_dtype(self, model_dtype: torch.dtype) -> torch.dtype:
        """Return what the KV cache of a model is of. Raises ConfigError if the device cannot convert it."""
        if self.kv_dtype == "auto":
            return model_dtype
        if self.place.type == "cuda" and torch.cuda.get_device_capability(self.place) < (8, 9):
            raise ConfigError(
                f"kv_dtype 'fp8' needs a GPU that converts float8, of compute capability 8.9 or more: {self.device} "
                "has less; use kv_dtype='auto'"
            )
        return FP8

    @property
    def runs_ahead(self) -> bool:
        """Whether steps are launched before the tokens of the step before are read."""
        if self.run_ahead is None:
            return self.place.type == "cuda" and self.tensor_parallel_size == 1
        return self.run_ahead

    def model_len(self, longest: int | None) -> int:
        """Return the longest sequence: what was asked for, else what the model knows (``longest``) up to a default.

        Raises ConfigError if more was asked for than the model knows.
        """
        asked = self.max_model_len
        if asked is None:
            return min(longest or DEFAULT_MAX_MODEL_LEN, DEFAULT_MAX_MODEL_LEN)
        if asked < 2 or (longest is not None and asked > longest):
            raise ConfigError(f"max_model_len {asked} must be at least 2 and at most the model's own {longest}")
        return asked
