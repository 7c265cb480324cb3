"""Numbers between the host and a device, such that the host does not wait for what the device does before."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def to_device(
    values: Sequence[int] | Sequence[float] | Sequence[Sequence[float]], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return ``values`` as a tensor on ``device``.

    A GPU reads them from pinned memory in the order of the current stream; torch gives that memory to nobody else
    before it has been read.
    """
    if device.type != "cuda":
        return torch.tensor(values, dtype=dtype, device=device)
    return torch.tensor(values, dtype=dtype, pin_memory=True).to(device, non_blocking=True)


class HostCopy:
    """Token ids on a device, ``on_device`` [count] in int64, and their copy on its way to the host."""

    def __init__(self, on_device: Tensor) -> None:
        self.on_device = on_device
        self._host = on_device
        self._arrived: torch.cuda.Event | None = None
        if on_device.is_cuda:
            self._host = torch.empty(on_device.shape, dtype=on_device.dtype, pin_memory=True)
            self._host.copy_(on_device, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record(torch.cuda.current_stream(on_device.device))

    def read(self) -> list[int]:
        """Return the ids; waits until they are there."""
        if self._arrived is not None:
            self._arrived.synchronize()
        ids: list[int] = self._host.tolist()
        return ids
