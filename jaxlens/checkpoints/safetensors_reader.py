"""Reads safetensors files on demand, and JSON files."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from jaxlens.checkpoints.arrays import Rows
from jaxlens.checkpoints.torch_files.dtypes import DTYPES
from jaxlens.errors import CheckpointError


class SafetensorsFile:
    """The tensors of a safetensors file.

    The constructor reads the header, and raises a CheckpointError if it is damaged. `read` reads the file, because the
    pages of a memory map would count as memory of this process while the file is open.
    """

    format = "safetensors"

    def __init__(self, path: str | Path):
        self.path = Path(path)
        with self._reading():
            with safe_open(self.path, framework="numpy", backend="pread"):
                pass  # checks the header and the length of the file
            with self.path.open("rb") as opened:
                size = int.from_bytes(opened.read(8), "little")
                self._header = json.loads(opened.read(size), object_pairs_hook=_without_duplicates)
                self._data = 8 + size
        self._header.pop("__metadata__", None)

    def names(self) -> list[str]:
        return list(self._header)

    def dtype(self, name: str) -> str:
        """The dtype as safetensors spells it: "F32", "BF16", "I64", …"""
        return self._header[name]["dtype"]

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._header[name]["shape"])

    def read(self, name: str) -> np.ndarray:
        """A tensor as a new array, in its stored dtype."""
        with self._reading():
            dtype, (start, stop) = DTYPES[self.dtype(name)], self._header[name]["data_offsets"]
            count = (stop - start) // dtype.itemsize
            return np.fromfile(self.path, dtype, count, offset=self._data + start).reshape(self.shape(name))

    def part(self, name: str, shape: tuple[int, ...], index: tuple[slice, ...]) -> np.ndarray:
        """A part of a tensor, reshaped to `shape`. Only the pages of the file that contain it are read."""
        with self._reading():
            dtype, (start, _) = DTYPES[self.dtype(name)], self._header[name]["data_offsets"]
            return np.array(np.memmap(self.path, dtype, "r", self._data + start, shape)[index])

    def by_rows(self, name: str) -> np.ndarray | Rows:
        """A tensor, to be read a few rows at a time if it is a matrix of at most 32 bits."""
        shape, dtype, (start, _) = self.shape(name), DTYPES[self.dtype(name)], self._header[name]["data_offsets"]
        if len(shape) != 2 or self.dtype(name) not in ("F32", "BF16", "F16"):
            return self.read(name)

        def fill(rows: slice, out: np.ndarray) -> None:
            stored = out if out.dtype == dtype else np.empty(out.shape, dtype)
            with self._reading(), self.path.open("rb") as file:
                file.seek(self._data + start + rows.start * shape[1] * dtype.itemsize)
                if file.readinto(stored.view(np.uint8)) < stored.nbytes:
                    raise ValueError(f"it ends before the end of {name}")
            if stored is not out:
                out[...] = stored

        return Rows(shape, fill)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Converts errors of the libraries into CheckpointErrors with the path."""
        try:
            yield
        except (SafetensorError, OSError, ValueError) as error:
            file, why = self.path, f"{error}; download it again"
            small = file.is_file() and file.stat().st_size < 1024
            if small and file.read_bytes().startswith(b"version https://git-lfs"):
                why = "it is a Git LFS pointer; run `git lfs pull`"
            raise CheckpointError(f"{file} cannot be read as safetensors: {why}") from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises a CheckpointError with the path if the file does not contain an object."""
    try:
        value = json.loads(path.read_text("utf-8"), object_pairs_hook=_without_duplicates)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} contains a {type(value).__name__}; expected a JSON object")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dict of `pairs`. Raises a ValueError if a name occurs twice, where json.loads would use the last value."""
    value = dict(pairs)
    if len(value) < len(pairs):
        duplicate = next(name for i, (name, _) in enumerate(pairs) if name in dict(pairs[:i]))
        raise ValueError(f"{duplicate!r} occurs twice")
    return value
