"""Reads the safetensors files of a folder on demand, and JSON files."""

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from jaxlens.errors import CheckpointError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
CONVERT_PICKLES = "convert it: transformers.AutoModelForCausalLM.from_pretrained({name}).save_pretrained(new_folder)"


class TensorFolder:
    """The tensors of a folder: those of its single safetensors file, or of the shards that its index lists.

    The path may also be that of a single file. If a folder has both, the single file is used, as in transformers. The
    constructor reads the headers, and raises a CheckpointError if a file is missing or damaged, or does not match the
    index. `read` uses `pread`, because the pages of a memory map would count as memory of this process while the file
    is open.
    """

    def __init__(self, folder: str | Path):
        self.path = Path(folder)
        self._files: dict[str, Path] = {}  # by tensor
        self._headers: dict[str, tuple[str, tuple[int, ...]]] = {}  # dtype and shape, by tensor
        sharded = (self.path / INDEX).is_file() and not (self.path / SINGLE).is_file()
        index = _read_index(self.path / INDEX) if sharded else None
        for file in [_single_file(self.path)] if index is None else _shards(self.path, index):
            self._read_header(file)
        if index is not None:
            self._check_index(index)
        self._open: tuple[Path, Any] | None = None

    def names(self) -> list[str]:
        return list(self._headers)

    def dtype(self, name: str) -> str:
        """The dtype as safetensors spells it: "F32", "BF16", "I64", …"""
        return self._headers[name][0]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._headers[name][1]

    def read(self, name: str) -> np.ndarray:
        """A tensor as a new array, in its stored dtype."""
        file = self._files[name]
        with _reading(file):
            if self._open is None or self._open[0] != file:
                self._open = (file, safe_open(file, framework="numpy", backend="pread"))
            return self._open[1].get_tensor(name)

    def _read_header(self, file: Path) -> None:
        with _reading(file):
            with safe_open(file, framework="numpy", backend="pread"):
                pass  # checks the header and the length of the file
            with file.open("rb") as opened:
                size = int.from_bytes(opened.read(8), "little")
                header = json.loads(opened.read(size), object_pairs_hook=_without_duplicates)
        header.pop("__metadata__", None)
        for name, entry in header.items():
            if name in self._headers:
                raise CheckpointError(f"{self.path}: {name} is in both {self._files[name].name} and {file.name}")
            self._files[name] = file
            self._headers[name] = (entry["dtype"], tuple(entry["shape"]))

    def _check_index(self, index: dict[str, str]) -> None:
        """Raises a CheckpointError unless the index lists the tensors of each shard."""
        files = {name: file.name for name, file in self._files.items()}
        if wrong := sorted(name for name in index.keys() | files.keys() if index.get(name) != files.get(name)):
            name = wrong[0]
            listed, actual = index.get(name, "no file"), files.get(name, "no file")
            problem = f"does not match the shards for {len(wrong)} tensors; it lists {name} in {listed}"
            raise CheckpointError(
                f"{self.path / INDEX} {problem}, but the tensor is in {actual}; download the folder again"
            )


def _read_index(path: Path) -> dict[str, str]:
    index = read_json(path).get("weight_map")
    if not isinstance(index, dict) or not index or not all(isinstance(file, str) for file in index.values()):
        raise CheckpointError(f"{path} has no weight_map from tensor names to file names; download it again")
    if invalid := sorted({file for file in index.values() if not re.fullmatch(r"[^/\\]+\.safetensors", file)}):
        raise CheckpointError(f"{path} lists {invalid}; expected only .safetensors files of the same folder")
    return index


def _shards(folder: Path, index: dict[str, str]) -> list[Path]:
    files = [folder / file for file in sorted(set(index.values()))]
    if missing := [file.name for file in files if not os.path.isfile(file)]:  # Path.is_file raises for some names
        problem = f"{len(missing)} of its {len(files)} shards are missing ({', '.join(missing)})"
        raise CheckpointError(f"{folder} is incomplete: {problem}; download the folder again")
    return files


def _single_file(folder: Path) -> Path:
    if folder.is_file():
        return folder
    files = [folder / SINGLE] if (folder / SINGLE).is_file() else sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return files[0]
    if files:
        names = ", ".join(file.name for file in files)
        raise CheckpointError(f"{folder} contains {names}, but no {INDEX} that lists their tensors; add it")
    if pickles := sorted(file.name for pattern in PICKLES for file in folder.glob(pattern)):
        problem = f"contains only pickled weights ({', '.join(pickles)}), which jaxlens does not open"
        reason = f"because a pickle can run code; {CONVERT_PICKLES.format(name='folder')}"
        raise CheckpointError(f"{folder} {problem}, {reason}")
    problem = f"contains no weights; expected {SINGLE}, or {INDEX} and the files it lists"
    if_pickled = "If the model is only published as pickles, which jaxlens does not download"
    raise CheckpointError(f"{folder} {problem}. {if_pickled}, {CONVERT_PICKLES.format(name='name')}")


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Converts errors of the libraries into CheckpointErrors with the path."""
    try:
        yield
    except (SafetensorError, OSError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        why = f"{error}; download it again"
        if file.is_file() and file.stat().st_size < 1024 and file.read_bytes().startswith(b"version https://git-lfs"):
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
