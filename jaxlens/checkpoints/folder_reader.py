"""Reads the tensors of a folder on demand: from a safetensors or PyTorch file, or from the shards of an index."""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from jaxlens.checkpoints.arrays import Rows
from jaxlens.checkpoints.rules.rule import by_rows
from jaxlens.checkpoints.safetensors_reader import SafetensorsFile, read_json
from jaxlens.checkpoints.torch_files.file import TorchFile
from jaxlens.errors import CheckpointError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
NOT_WEIGHTS = (
    "adapter_model*",
    "optimizer*",
    "openvino_*",
    "rng_state*",
    "scaler*",
    "scheduler*",
    "trainer_*",
    "training_args*",
)
"""Files with the suffix of a PyTorch file that contain no weights of a model, as glob patterns."""


@dataclass(frozen=True)
class Format:
    """A format of weights: the name of a file with all tensors, the name of an index, and the suffixes of files."""

    name: str
    single: str
    index: str
    suffixes: tuple[str, ...]
    open: Callable[[Path], Any]

    def files(self, folder: Path) -> list[Path]:
        """The files in a folder that may contain weights, by their names."""
        files = (file for suffix in self.suffixes for file in folder.glob(f"*{suffix}"))
        return sorted(file for file in files if not any(fnmatchcase(file.name, name) for name in NOT_WEIGHTS))


SAFETENSORS = Format("safetensors", SINGLE, INDEX, (".safetensors",), SafetensorsFile)
PYTORCH = Format(
    "PyTorch", "pytorch_model.bin", "pytorch_model.bin.index.json", (".bin", ".pth", ".pt", ".ckpt"), TorchFile
)
FORMATS = (SAFETENSORS, PYTORCH)
"""The formats. If a folder has files of several formats, the first is used."""


WRAPPERS = ("module.", "_orig_mod.")
"""The prefixes that DistributedDataParallel and `torch.compile` add to the names of all tensors."""


class TensorFolder:
    """The tensors of a folder: those of its single file of weights, or of the shards that its index lists.

    If a folder has both, the single file is used, and safetensors are preferred to PyTorch files, as in transformers.
    If all names begin with a prefix in `WRAPPERS`, it is left out.
    The constructor reads the headers, and raises a CheckpointError if a file is missing or damaged, or does not match
    the index.
    """

    def __init__(self, folder: str | Path):
        self.path = Path(folder)
        self._files: dict[str, Any] = {}  # by tensor
        format, files, index = _find(self.path)
        self._format, self._count = format, len(files)
        for file in map(format.open, files):
            for name in file.names():
                if name in self._files:
                    both = f"{self._files[name].path.name} and {file.path.name}"
                    raise CheckpointError(f"{self.path}: {name} is in both {both}; remove one of the files")
                self._files[name] = file
        if index is not None:
            self._check_index(format.index, index)
        self._stored = _without_wrappers(list(self._files))

    def names(self) -> list[str]:
        return list(self._stored)

    @property
    def format(self) -> str:
        """The format of the files, with their number and the dtypes of the tensors, the most frequent dtype first."""
        dtypes = Counter(self.dtype(name) for name in self._stored).most_common()
        shards = f" in {self._count} shards" if self._count > 1 else ""
        return f"{self._format.name}{shards}, {', '.join(dtype for dtype, _ in dtypes)}"

    def dtype(self, name: str) -> str:
        """The dtype as safetensors spells it: "F32", "BF16", "I64", …"""
        file, stored = self._locate(name)
        return file.dtype(stored)

    def shape(self, name: str) -> tuple[int, ...]:
        file, stored = self._locate(name)
        return file.shape(stored)

    def read(self, name: str) -> np.ndarray:
        """A tensor in its stored dtype. It may be a read-only view of the file."""
        file, stored = self._locate(name)
        return file.read(stored)

    def part(self, name: str, shape: tuple[int, ...], index: tuple[slice, ...]) -> np.ndarray:
        """A part of a tensor, reshaped to `shape`."""
        file, stored = self._locate(name)
        return file.part(stored, shape, index) if hasattr(file, "part") else file.read(stored).reshape(shape)[index]

    def by_rows(self, name: str) -> np.ndarray | Rows:
        """A tensor, to be read a few rows at a time if its file allows that."""
        return by_rows(*self._locate(name))

    def _locate(self, name: str) -> tuple[Any, str]:
        """The file with a tensor, and the name of the tensor in it."""
        return self._files[self._stored[name]], self._stored[name]

    def _check_index(self, index_name: str, index: dict[str, str]) -> None:
        """Raises a CheckpointError unless the index lists the tensors of each shard."""
        files = {name: file.path.name for name, file in self._files.items()}
        if wrong := sorted(name for name in index.keys() | files.keys() if index.get(name) != files.get(name)):
            name = wrong[0]
            listed, actual = index.get(name, "no file"), files.get(name, "no file")
            problem = f"does not match the shards for {len(wrong)} tensors; it lists {name} in {listed}"
            raise CheckpointError(
                f"{self.path / index_name} {problem}, but the tensor is in {actual}; download the folder again"
            )


def _without_wrappers(stored: list[str]) -> dict[str, str]:
    """The names of tensors without the prefixes in `WRAPPERS`, and those in the file.

    Example:
        >>> _without_wrappers(["module._orig_mod.wte.weight", "module._orig_mod.ln_f.bias"])
        {'wte.weight': 'module._orig_mod.wte.weight', 'ln_f.bias': 'module._orig_mod.ln_f.bias'}
        >>> _without_wrappers(["module.wte.weight", "ln_f.bias"])
        {'module.wte.weight': 'module.wte.weight', 'ln_f.bias': 'ln_f.bias'}
    """
    names = list(stored)
    while prefix := next((p for p in WRAPPERS if names and all(name.startswith(p) for name in names)), None):
        names = [name.removeprefix(prefix) for name in names]
    return dict(zip(names, stored, strict=True))


def has_weights(folder: Path) -> bool:
    """Whether a folder has files of a format, or an index."""
    return any((folder / format.index).is_file() or format.files(folder) for format in FORMATS)


def _find(folder: Path) -> tuple[Format, list[Path], dict[str, str] | None]:
    """The format of the weights of a folder, their files, and the index that lists the tensors of these files."""
    for format in FORMATS:
        if (folder / format.single).is_file():
            return format, [folder / format.single], None
        if (folder / format.index).is_file():
            index = _read_index(folder / format.index, format)
            return format, _shards(folder, index), index
        if len(files := format.files(folder)) == 1:
            return format, files, None
        if files:
            names = ", ".join(file.name for file in files)
            raise CheckpointError(f"{folder} contains {names}, but no {format.index} that lists their tensors; add it")
    expected = " or ".join(f"{format.single}, or {format.index} and the files it lists" for format in FORMATS)
    raise CheckpointError(f"{folder} contains no weights; expected {expected}")


def _read_index(path: Path, format: Format) -> dict[str, str]:
    index = read_json(path).get("weight_map")
    if not isinstance(index, dict) or not index or not all(isinstance(file, str) for file in index.values()):
        raise CheckpointError(f"{path} has no weight_map from tensor names to file names; download it again")
    if invalid := sorted({file for file in index.values() if not _is_in_folder(file, format)}):
        suffixes = " or ".join(format.suffixes)
        raise CheckpointError(f"{path} lists {invalid}; expected only {suffixes} files of the same folder")
    return index


def _is_in_folder(file: str, format: Format) -> bool:
    name, suffix = os.path.splitext(file)
    return bool(name) and suffix in format.suffixes and not {"/", "\\"} & set(file)


def _shards(folder: Path, index: dict[str, str]) -> list[Path]:
    files = [folder / file for file in sorted(set(index.values()))]
    if missing := [file.name for file in files if not os.path.isfile(file)]:  # Path.is_file raises for some names
        problem = f"{len(missing)} of its {len(files)} shards are missing ({', '.join(missing)})"
        raise CheckpointError(f"{folder} is incomplete: {problem}; download the folder again")
    return files
