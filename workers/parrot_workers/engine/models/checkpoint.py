"""The weights of a model folder: one safetensors file, or several with an index."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from parrot_mq.errors import ConfigError

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_MAX_NAMED = 8
"""Names that an error spells out."""


class Checkpoint:
    """Tensors by name. Raises ConfigError, naming files and tensors, for whatever is wrong with them.

    Files are mapped, not read: ``release`` unmaps them, so that what was copied out of them is not in memory twice.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = _find_files(folder)
        self._open: dict[str, Any] = {}
        self._stack = contextlib.ExitStack()
        self._headers = {name: self._header(name) for name in self._files}
        self.release()

    def __contains__(self, name: str) -> bool:
        return name in self._headers

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of most of its elements."""
        sizes: dict[torch.dtype, int] = {}
        for shape, kind in self._headers.values():
            if kind in _DTYPES:
                sizes[_DTYPES[kind]] = sizes.get(_DTYPES[kind], 0) + math.prod(shape)
        if not sizes:
            raise ConfigError(f"{self.folder} holds no tensor of floats")
        return max(sizes, key=lambda dtype: sizes[dtype])

    def num_elements(self, name: str | None = None) -> int:
        """Return the elements of one tensor, or of all."""
        names = [name] if name is not None else list(self._headers)
        return sum(math.prod(self._headers[name][0]) for name in names)

    def require(self, expected: dict[str, tuple[int, ...]], ignored: Iterable[str] = ()) -> None:
        """Raise ConfigError unless it holds the tensors ``expected`` (shapes by name) and no other.

        What ends with one of ``ignored`` may be there too.
        """
        for name, shape in expected.items():
            if name not in self._headers:
                raise ConfigError(f"{self.folder} lacks the tensor {name} {list(shape)} that its config.json asks for")
            found, kind = self._headers[name]
            if tuple(found) != shape:
                raise ConfigError(
                    f"{self.folder}: the tensor {name} has the shape {found}, its config.json asks for {list(shape)}"
                )
            if kind not in _DTYPES:
                raise ConfigError(f"{self.folder}: the tensor {name} is of dtype {kind}, none of {', '.join(_DTYPES)}")
        endings = tuple(ignored)
        rest = sorted(name for name in self._headers.keys() - expected.keys() if not name.endswith(endings))
        if rest:
            raise ConfigError(f"{self.folder} holds tensors that its config.json does not speak of: {listed(rest)}")

    def read(self, name: str, dtype: torch.dtype, *, rows: slice = slice(None), columns: slice | None = None) -> Tensor:
        """Return a copy of a tensor, or of some of its rows and columns, in ``dtype``."""
        lazy = self._handle(name).get_slice(name)
        part: Tensor = lazy[rows] if columns is None else lazy[rows, columns]
        return part.to(dtype=dtype, copy=True, memory_format=torch.contiguous_format)

    def release(self) -> None:
        """Unmap the files; they are mapped again when they are read."""
        self._open.clear()
        self._stack.close()

    def _header(self, name: str) -> tuple[list[int], str]:
        try:
            part = self._handle(name).get_slice(name)
        except safetensors.SafetensorError as error:
            raise ConfigError(f"{self._path(name)} lacks {name}, which the index says is there") from error
        return part.get_shape(), part.get_dtype()

    def _path(self, name: str) -> Path:
        return self.folder / self._files[name]

    def _handle(self, name: str) -> Any:
        file = self._files[name]
        if file not in self._open:
            self._open[file] = self._stack.enter_context(_open(self.folder / file))
        return self._open[file]


def listed(names: list[str]) -> str:
    """Return ``names`` as text, the first few of many."""
    return ", ".join(names[:_MAX_NAMED]) + (f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else "")


def _find_files(folder: Path) -> dict[str, str]:
    """Return the file of each tensor: the single file goes before an index, as in transformers."""
    if (folder / SINGLE_FILE).is_file():
        with _open(folder / SINGLE_FILE) as file:
            return dict.fromkeys(file.keys(), SINGLE_FILE)
    if (folder / INDEX_FILE).is_file():
        try:
            files: dict[str, str] = dict(json.loads((folder / INDEX_FILE).read_text())["weight_map"])
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{folder / INDEX_FILE} is no index of safetensors files: {error}") from error
        missing = sorted({file for file in files.values() if not (folder / file).is_file()})
        if missing:
            raise ConfigError(f"{folder} lacks {', '.join(missing)}: copy or download the model again")
        return files
    if any(next(folder.glob(pattern), None) for pattern in _PICKLED):
        raise ConfigError(
            f"{folder} holds pickled weights, which can run any code when they are loaded: convert them where you "
            "trust them, by AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder) of transformers"
        )
    raise ConfigError(f"{folder} holds no {SINGLE_FILE} and no {INDEX_FILE}: is the download complete?")


def _open(path: Path) -> Any:
    try:
        return safetensors.safe_open(path, framework="pt")
    except (safetensors.SafetensorError, OSError) as error:
        raise ConfigError(f"{path} is no whole safetensors file ({error}): copy or download it again") from error
