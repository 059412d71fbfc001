"""Folders of safetensors: read lazily, written whole or not at all."""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxlens.errors import CheckpointError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class TensorFolder:
    """The tensors of a folder, in one safetensors file or in the shards that its index names.

    Making one reads and checks the headers. A tensor is read when it is asked for, with `pread` and not through a
    memory map, whose pages would count as this process's memory for as long as the file stays open.

    Raises:
        CheckpointError: with the path, if a file is missing, damaged, cut short, or not what the index says.
    """

    def __init__(self, folder: str | Path):
        self.path = Path(folder)
        self._files: dict[str, Path] = {}  # tensor -> its file
        self._headers: dict[str, tuple[str, tuple[int, ...]]] = {}  # tensor -> dtype, shape
        index = _read_index(self.path / INDEX) if (self.path / INDEX).is_file() else None
        for file in _only_file(self.path) if index is None else _shards(self.path, index):
            self._read_header(file)
        if index is not None:
            self._compare(index)
        self._open: tuple[Path, Any] | None = None

    def names(self) -> list[str]:
        return list(self._headers)

    def dtype(self, name: str) -> str:
        """As safetensors names it: "F32", "BF16", "I64", …"""
        return self._headers[name][0]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._headers[name][1]

    def read(self, name: str) -> np.ndarray:
        """A tensor as a new array, in the number type it is stored in."""
        file = self._files[name]
        with _explained(file):
            if self._open is None or self._open[0] != file:
                self._open = (file, safe_open(file, framework="numpy", backend="pread"))
            return self._open[1].get_tensor(name)

    def _read_header(self, file: Path) -> None:
        with _explained(file), safe_open(file, framework="numpy", backend="pread") as handle:
            names = handle.keys()
            for name in names:
                tensor = handle.get_slice(name)
                if name in self._headers:
                    raise CheckpointError(f"{self.path}: {name} is in both {self._files[name].name} and {file.name}")
                self._files[name] = file
                self._headers[name] = (tensor.get_dtype(), tuple(tensor.get_shape()))

    def _compare(self, index: dict[str, str]) -> None:
        """The index and the headers must tell the same story."""
        found = {name: file.name for name, file in self._files.items()}
        if wrong := sorted(name for name in index.keys() | found.keys() if index.get(name) != found.get(name)):
            name = wrong[0]
            raise CheckpointError(
                f"{self.path / INDEX} does not match its shards in {len(wrong)} tensors: it has {name} in "
                f"{index.get(name, 'no file')}, and it is in {found.get(name, 'none')}; download the folder again"
            )


def _read_index(path: Path) -> dict[str, str]:
    index = read_json(path).get("weight_map")
    if not isinstance(index, dict) or not index or not all(isinstance(file, str) for file in index.values()):
        raise CheckpointError(f"{path} has no weight_map of tensor names to file names; download it again")
    if strange := sorted({file for file in index.values() if not re.fullmatch(r"[^/\\]+\.safetensors", file)}):
        raise CheckpointError(f"{path} names {strange}; only .safetensors files in its own folder are allowed")
    return index


def _shards(folder: Path, index: dict[str, str]) -> list[Path]:
    files = [folder / file for file in sorted(set(index.values()))]
    if missing := [file.name for file in files if not file.is_file()]:
        raise CheckpointError(
            f"{folder} is incomplete: {len(missing)} of its {len(files)} shards are missing ({', '.join(missing)}); "
            "the download was probably interrupted: download the folder again"
        )
    return files


def _only_file(folder: Path) -> list[Path]:
    files = [folder / SINGLE] if (folder / SINGLE).is_file() else sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return files
    if files:
        names = ", ".join(file.name for file in files)
        raise CheckpointError(f"{folder} holds {names} but no {INDEX} that says which belong together; add it")
    if pickled := sorted(file.name for pattern in PICKLED for file in folder.glob(pattern)):
        raise CheckpointError(
            f"{folder} holds its weights as pickles only ({', '.join(pickled)}), which can run code when they are "
            "opened and are not read here; convert them once with transformers: "
            "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)"
        )
    raise CheckpointError(f"{folder} holds no weights: wanted {SINGLE}, or {INDEX} and the files it names")


@contextlib.contextmanager
def _explained(file: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        why = f"{error}; download it again"
        if file.is_file() and file.stat().st_size < 1024 and file.read_bytes().startswith(b"version https://git-lfs"):
            why = "it is a Git LFS pointer, not the weights: run `git lfs pull`"
        raise CheckpointError(f"{file} cannot be read as safetensors: {why}") from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; a CheckpointError with the path if there is none."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, where a JSON object is wanted")
    return value


# ---- writing --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def written_whole(folder: str | Path, replaces: Any = None) -> Iterator[Path]:
    """A temporary sibling of `folder` to write into, which takes its name once everything is written.

    A folder that exists and is not empty is only replaced if `replaces(folder)` says so; otherwise FileExistsError.
    """
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and (not any(folder.iterdir()) or (replaces and replaces(folder)))):
        raise FileExistsError(f"{folder} exists and holds something else; remove it, or choose another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_tensors(folder: Path, tensors: Iterable[tuple[str, np.ndarray]], shard_bytes: int) -> None:
    """One safetensors file, or shards of at most `shard_bytes` and their index; one shard is in memory at a time."""
    files: dict[str, int] = {}  # tensor -> number of its shard
    sizes = []
    for batch in _batches(tensors, shard_bytes):
        save_file(batch, folder / f"shard-{len(sizes)}", metadata={"format": "pt"})
        files |= dict.fromkeys(batch, len(sizes))
        sizes.append(sum(tensor.nbytes for tensor in batch.values()))
        batch.clear()
    if len(sizes) == 1:
        (folder / "shard-0").rename(folder / SINGLE)
        return
    final = [f"model-{i + 1:05d}-of-{len(sizes):05d}.safetensors" for i in range(len(sizes))]
    for i, name in enumerate(final):
        (folder / f"shard-{i}").rename(folder / name)
    index = {tensor: final[i] for tensor, i in files.items()}
    write_json(folder / INDEX, {"metadata": {"total_size": sum(sizes)}, "weight_map": index})


def _batches(tensors: Iterable[tuple[str, np.ndarray]], most_bytes: int) -> Iterator[dict[str, np.ndarray]]:
    batch, size = {}, 0
    for name, tensor in tensors:
        if batch and size + tensor.nbytes > most_bytes:
            yield batch
            batch, size = {}, 0
        batch[name] = tensor
        size += tensor.nbytes
    yield batch


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
