"""Folders of safetensors: read lazily, written whole or not at all."""

import contextlib
import glob
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from jaxlens.convert.checking import is_finite, warn_of
from jaxlens.convert.rules import FLOATS, Tensors
from jaxlens.errors import CheckpointError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SHARD = "model-{:05d}-of-{:05d}.safetensors"
Replaces = Callable[[Path], bool] | None
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
FROM_PICKLES = (
    "convert them once with transformers: AutoModelForCausalLM.from_pretrained({name}).save_pretrained(new_folder)"
)


class TensorFolder:
    """The tensors of a folder, in one safetensors file or in the shards that its index names; of both, as in
    transformers, in the former.

    Making one reads and checks the headers. A tensor is read when it is asked for, with `pread` and not through a
    memory map, whose pages would count as this process's memory for as long as the file stays open.

    Raises:
        CheckpointError: with the path, if a file is missing, damaged, cut short, or not what the index says.
    """

    def __init__(self, folder: str | Path):
        self.path = Path(folder)
        self._files: dict[str, Path] = {}  # tensor -> its file
        self._headers: dict[str, tuple[str, tuple[int, ...]]] = {}  # tensor -> dtype, shape
        sharded = (self.path / INDEX).is_file() and not (self.path / SINGLE).is_file()
        index = _read_index(self.path / INDEX) if sharded else None
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
        with _explained(file):
            with safe_open(file, framework="numpy", backend="pread"):
                pass  # the header is sound, and the file as long as it says
            with file.open("rb") as opened:
                size = int.from_bytes(opened.read(8), "little")
                header = json.loads(opened.read(size), object_pairs_hook=_unique)
        header.pop("__metadata__", None)
        for name, entry in header.items():
            if name in self._headers:
                raise CheckpointError(f"{self.path}: {name} is in both {self._files[name].name} and {file.name}")
            self._files[name] = file
            self._headers[name] = (entry["dtype"], tuple(entry["shape"]))

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
    if missing := [file.name for file in files if not os.path.isfile(file)]:  # of any name: Path.is_file refuses some
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
            f"opened and are not read here: {FROM_PICKLES.format(name='folder')}"
        )
    raise CheckpointError(
        f"{folder} holds no weights: wanted {SINGLE}, or {INDEX} and the files it names. If a model is published as "
        f"pickles only, which are not downloaded: {FROM_PICKLES.format(name='name')}"
    )


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
        value = json.loads(path.read_text("utf-8"), object_pairs_hook=_unique)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, where a JSON object is wanted")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object in which no name occurs twice; of two values Python would keep one and say nothing."""
    value = dict(pairs)
    if len(value) < len(pairs):
        twice = next(name for i, (name, _) in enumerate(pairs) if name in dict(pairs[:i]))
        raise ValueError(f"{twice!r} occurs twice")
    return value


# ---- writing --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def written_whole(folder: str | Path, replaces: Replaces = None) -> Iterator[Path]:
    """A temporary sibling of `folder` to write into, which takes its name once everything is written.

    Where `folder` is a link, that is done where it leads. A process that is killed leaves that sibling behind; the
    next one to write `folder` removes it.

    Raises:
        FileExistsError: `folder` exists, is not empty, and `replaces(folder)` does not say that it may be replaced; or
            it has come to be so by the end.
    """
    folder = Path(folder)
    check_free(folder, replaces)
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    _clear(folder)
    partial, old = (folder.with_name(f".{folder.name}.{kind}-{os.getpid()}") for kind in ("partial", "old"))
    partial.mkdir()
    try:
        yield partial
        check_free(folder, replaces)
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_free(folder: Path, replaces: Replaces = None) -> None:
    """Raises FileExistsError if a folder is neither empty, nor to be made, nor one that may be replaced."""
    if folder.exists() and folder.samefile(os.curdir):
        raise FileExistsError(f"{folder} is the folder you are in, which cannot be replaced; choose another folder")
    if folder.exists() and not (folder.is_dir() and (not any(folder.iterdir()) or (replaces and replaces(folder)))):
        raise FileExistsError(f"{folder} exists and holds something else; remove it, or choose another folder")


def _clear(folder: Path) -> None:
    """Removes what processes that were killed while they wrote `folder` have left behind."""
    for leftover in folder.parent.glob(f".{glob.escape(folder.name)}.*"):
        kind, _, process = leftover.name.removeprefix(f".{folder.name}.").partition("-")
        if kind not in ("partial", "old") or not process.isdecimal() or _runs(int(process)):
            continue
        if kind == "old" and not folder.exists():
            leftover.rename(folder)  # it was killed between two renames
        else:
            shutil.rmtree(leftover, ignore_errors=True)


def _runs(process: int) -> bool:
    """Whether another process of this number may be running."""
    if process == os.getpid() or os.name != "posix":  # elsewhere there is no asking
        return process != os.getpid()
    try:
        return os.kill(process, 0) is None  # sends nothing
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True


def write_tensors(folder: Path, tensors: Tensors, shard_bytes: int) -> None:
    """One safetensors file, or shards of at most `shard_bytes` (or one tensor) each and their index.

    No more than one tensor is in memory at a time. NaN and infinite numbers are told of by a warning.
    """
    sizes = {name: math.prod(tensors.shape(name)) * _item_size(tensors, name) for name in tensors.names()}
    shards, strange = _divided(sizes, shard_bytes), []
    files = [SINGLE] if len(shards) == 1 else [SHARD.format(i + 1, len(shards)) for i in range(len(shards))]
    with tqdm(
        total=sum(sizes.values()), desc="writing", unit="B", unit_scale=True, disable=None, leave=False
    ) as progress:  # fmt: skip
        for file, shard in zip(files, shards, strict=True):
            shard.sort(key=lambda name: -_item_size(tensors, name))  # so that all numbers are aligned
            with (folder / file).open("wb") as out:
                out.write(_header(tensors, {name: sizes[name] for name in shard}))
                for name in shard:
                    strange += [] if _write(out, tensors.read(name), tensors.dtype(name)) else [name]
                    progress.update(sizes[name])
    if len(files) > 1:
        index = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        write_json(folder / INDEX, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": index})
    warn_of(strange)


def _divided(sizes: Mapping[str, int], most: int) -> list[list[str]]:
    """Names in runs whose sizes sum to `most` at most, but for a single one that is larger."""
    runs, filled = [[]], 0
    for name, size in sizes.items():
        if runs[-1] and filled + size > most:
            runs, filled = [*runs, []], 0
        runs[-1].append(name)
        filled += size
    return runs


def _header(tensors: Tensors, sizes: Mapping[str, int]) -> bytes:
    """How a safetensors file begins: the length of what follows, and as JSON where each tensor lies.

    It is filled up with spaces to a multiple of 8 bytes, so that the numbers after it are aligned.
    """
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, size in sizes.items():
        start, end = end, end + size
        header[name] = {"dtype": tensors.dtype(name), "shape": tensors.shape(name), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write(out: BinaryIO, tensor: np.ndarray, dtype: str, step: int = 2**20) -> bool:
    """Writes a tensor cast to `dtype`, some `step` numbers at a time; whether all of them are finite."""
    tensor, finite = np.atleast_1d(tensor), True
    rows = max(1, step * len(tensor) // max(1, tensor.size))
    for start in range(0, len(tensor), rows):
        with np.errstate(over="ignore"):  # what is too large for dtype becomes infinite, which is told
            part = np.ascontiguousarray(tensor[start : start + rows], FLOATS[dtype])
        finite &= is_finite(part)
        out.write(part.reshape(-1).view(np.uint8).data)
    return finite


def _item_size(tensors: Tensors, name: str) -> int:
    return np.dtype(FLOATS[tensors.dtype(name)]).itemsize


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
