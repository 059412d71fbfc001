"""Writes folders of safetensors. A folder appears under its name only when it is complete."""

import contextlib
import glob
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tqdm import tqdm

from jaxlens.checkpoints.arrays import is_finite
from jaxlens.checkpoints.folder_reader import INDEX, SINGLE
from jaxlens.checkpoints.rules.rule import FLOATS, Tensors
from jaxlens.checkpoints.validate import warn_not_finite
from jaxlens.config import Config

GENERATION_CONFIG = "generation_config.json"
SHARD = "model-{:05d}-of-{:05d}.safetensors"
MayReplace = Callable[[Path], bool] | None
"""Decides whether an existing folder with files in it may be replaced. None: never."""


@contextlib.contextmanager
def atomic_folder(folder: str | Path, may_replace: MayReplace = None) -> Iterator[Path]:
    """Yields a temporary folder to write to, and renames it to `folder` at the end.

    The temporary folder is next to `folder`, or next to its target if `folder` is a link. If the process is killed, the
    temporary folder remains, and the next call for the same `folder` removes it. `require_free` checks `folder` at the
    start and at the end.
    """
    folder = Path(folder)
    require_free(folder, may_replace)
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder)
    partial, old = (folder.with_name(f".{folder.name}.{kind}-{os.getpid()}") for kind in ("partial", "old"))
    partial.mkdir()
    try:
        yield partial
        require_free(folder, may_replace)
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def require_free(folder: Path, may_replace: MayReplace = None) -> None:
    """Raises a FileExistsError if a folder exists, is not empty and may not be replaced."""
    if folder.exists() and folder.samefile(os.curdir):
        raise FileExistsError(f"{folder} is the current folder, which cannot be replaced; choose another folder")
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder.is_dir() and may_replace and may_replace(folder)):
        raise FileExistsError(f"{folder} exists and contains other files; remove it, or choose another folder")


def _remove_leftovers(folder: Path) -> None:
    """Removes the temporary folders of processes that were killed while they wrote `folder`."""
    for leftover in folder.parent.glob(f".{glob.escape(folder.name)}.*"):
        kind, _, process = leftover.name.removeprefix(f".{folder.name}.").partition("-")
        if kind not in ("partial", "old") or not process.isdecimal() or _may_be_running(int(process)):
            continue
        if kind == "old" and not folder.exists():
            leftover.rename(folder)  # the process was killed between its two renames
        else:
            shutil.rmtree(leftover, ignore_errors=True)


def _may_be_running(process: int) -> bool:
    """Whether another process with this id may be running."""
    if process == os.getpid() or os.name != "posix":  # other systems have no such check
        return process != os.getpid()
    try:
        return os.kill(process, 0) is None  # signal 0 only checks that the process exists
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True


def write_tensors(folder: Path, tensors: Tensors, shard_bytes: int) -> None:
    """Writes one safetensors file, or shards and their index.

    A shard has at most `shard_bytes`, unless a single tensor is larger. At most one tensor is in memory at a time. A
    warning lists tensors that contain NaN or infinity.
    """
    sizes = {name: math.prod(tensors.shape(name)) * _item_size(tensors, name) for name in tensors.names()}
    shards, not_finite = _divide(sizes, shard_bytes), []
    files = [SINGLE] if len(shards) == 1 else [SHARD.format(i + 1, len(shards)) for i in range(len(shards))]
    total = sum(sizes.values())
    with tqdm(total=total, desc="writing", unit="B", unit_scale=True, disable=None, leave=False) as progress:
        for file, shard in zip(files, shards, strict=True):
            shard.sort(key=lambda name: -_item_size(tensors, name))  # wide dtypes first aligns all values
            with (folder / file).open("wb") as out:
                out.write(_header(tensors, {name: sizes[name] for name in shard}))
                for name in shard:
                    not_finite += [] if _write(out, tensors.read(name), tensors.dtype(name)) else [name]
                    progress.update(sizes[name])
    if len(files) > 1:
        index = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": index})
    warn_not_finite(not_finite)


def _divide(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Groups of consecutive names whose sizes sum to at most `limit`. A larger tensor is a group of one."""
    groups, total = [[]], 0
    for name, size in sizes.items():
        if groups[-1] and total + size > limit:
            groups, total = [*groups, []], 0
        groups[-1].append(name)
        total += size
    return groups


def _header(tensors: Tensors, sizes: Mapping[str, int]) -> bytes:
    """The header of a safetensors file: its length, then the dtype, shape and offsets of each tensor as JSON."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, size in sizes.items():
        start, end = end, end + size
        header[name] = {"dtype": tensors.dtype(name), "shape": tensors.shape(name), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # aligns the values after it
    return len(text).to_bytes(8, "little") + text


def _write(out: BinaryIO, tensor: np.ndarray, dtype: str, step: int = 2**20) -> bool:
    """Casts a tensor to `dtype` and writes it, about `step` values at a time. Returns whether all values are finite."""
    tensor, finite = np.atleast_1d(tensor), True
    rows = max(1, step * len(tensor) // max(1, tensor.size))
    for start in range(0, len(tensor), rows):
        with np.errstate(over="ignore"):  # values too large for dtype become infinite; the caller warns
            chunk = np.ascontiguousarray(tensor[start : start + rows], FLOATS[dtype])
        finite &= is_finite(chunk)
        out.write(chunk.reshape(-1).view(np.uint8).data)
    return finite


def _item_size(tensors: Tensors, name: str) -> int:
    return np.dtype(FLOATS[tensors.dtype(name)]).itemsize


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")


def write_generation_config(folder: Path, cfg: Config) -> None:
    """Writes the generation_config.json of the checkpoint that a model was loaded from, if there was one."""
    if cfg.generation_config is not None:
        write_json(folder / GENERATION_CONFIG, dict(cfg.generation_config))
