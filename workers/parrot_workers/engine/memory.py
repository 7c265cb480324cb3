"""How much memory the KV cache and the host tier get, how many blocks that is, and what an engine uses in all."""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Iterable

import torch

from parrot_kernels.attention_plan import BLOCK_SIZE
from parrot_mq.errors import ConfigError
from parrot_workers.engine.available_memory import available_bytes
from parrot_workers.engine.paged_cache import LayerShape

CPU_FRACTION = 0.4
"""Of the memory that is available once the model is loaded. Pages are taken when a block is first written."""
CUDA_FRACTION = 0.9
"""Of the memory that is free once the model is loaded, what steps need included."""
HOST_FRACTION = 0.25
"""Of the available memory, for the host tier of a GPU; at most ``HOST_PER_DEVICE`` times what its cache has."""
HOST_PER_DEVICE = 2


@dataclasses.dataclass(frozen=True, slots=True)
class MemoryUse:
    """Bytes of an engine, on its device and (``host_kv``) in host memory.

    ``kv`` is what the cache may grow to, ``touched_kv`` what it has taken so far: on a CPU a page is taken when it is
    first written. ``workspace`` is the buffers of steps and transfers.
    """

    weights: int
    kv: int
    touched_kv: int
    host_kv: int
    workspace: int

    @property
    def total(self) -> int:
        """All of it, with the cache as large as it may grow."""
        return self.weights + self.kv + self.host_kv + self.workspace


def give_back_freed() -> None:
    """Return to the system what C's allocator keeps of freed memory: loading a model leaves tens of MiB of it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # the GNU C library has it
    if trim is not None:
        trim(0)


def block_bytes(layers: Iterable[LayerShape], dtype: torch.dtype) -> int:
    """Bytes of a block of all layers."""
    return BLOCK_SIZE * sum(layer.bytes_per_token(dtype) for layer in layers)


def device_available_bytes(device: torch.device) -> int:
    """Return what a device has left; on a CPU within the limits of our control groups."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return available_bytes()


def num_blocks(
    size: int,
    memory_bytes: int | None,
    device: torch.device,
    *,
    max_num_tokens: int,
    share: float | None = None,
    step_bytes: int = 0,
) -> int:
    """Return how many blocks of ``size`` bytes the cache gets: as many as ``memory_bytes`` hold, by default the
    ``share`` of what is available less the ``step_bytes`` that steps take on the device, and at most twice what
    ``max_num_tokens`` running tokens need: the second half is prefix cache.

    Raises ConfigError if not even one block fits, or if more is asked for than there is.
    """
    available = device_available_bytes(device)
    if memory_bytes is None:
        share = share or (CUDA_FRACTION if device.type == "cuda" else CPU_FRACTION)
        memory_bytes = int(available * share) - step_bytes
        if memory_bytes < size:
            steps = f", of which steps take {_mib(step_bytes)}" if step_bytes else ""
            raise ConfigError(
                f"{_mib(available)} MiB are available on {device} for the KV cache{steps}, too little for one block of "
                f"{size} bytes beside the model: free memory, raise memory_share or the limit of its control group, or "
                "take a smaller model"
            )
    count = memory_bytes // size
    if count < 1:
        raise ConfigError(f"a KV cache of {memory_bytes} bytes holds no block of {size} bytes: raise kv_memory_bytes")
    count = min(count, 2 * -(-max_num_tokens // BLOCK_SIZE))
    _check_fits("kv_memory_bytes", count * size, available, device)
    return count


def num_host_slots(size: int, memory_bytes: int | None, device: torch.device, *, num_blocks: int) -> int:
    """Return how many blocks of ``size`` bytes the host tier holds. By default none for a CPU, whose cache has the same
    memory, and a part of what is available for a GPU. Raises ConfigError if more is asked for than there is.
    """
    available = available_bytes()
    if memory_bytes is None:
        if device.type == "cpu":
            return 0
        memory_bytes = min(int(available * HOST_FRACTION), HOST_PER_DEVICE * num_blocks * size)
    _check_fits("host_kv_memory_bytes", memory_bytes, available, torch.device("cpu"))
    return memory_bytes // size


def _check_fits(setting: str, memory_bytes: int, available: int, device: torch.device) -> None:
    if memory_bytes > available:
        raise ConfigError(
            f"{setting} asks for {_mib(memory_bytes)} MiB, but only {_mib(available)} MiB are available on {device} "
            f"(limits of control groups included): lower {setting}, or free memory"
        )


def _mib(count: int) -> int:
    return count // 2**20
