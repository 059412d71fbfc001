"""The files of a harvest: shards of rows, one row per token, as safetensors. A shard that exists is complete."""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxlens.checkpoints.torch_files.dtypes import DTYPES

SHARD = "shard-{:05d}.safetensors"
NAMES = {dtype: name for name, dtype in DTYPES.items()}
"""The name of each dtype in safetensors."""


class HarvestError(ValueError):
    """A folder of activations cannot be read, or belongs to a harvest with other arguments."""


@dataclasses.dataclass(frozen=True)
class ShardInfo:
    """What the header of a shard says: its rows, the documents `first` to `stop` - 1 in it, and a checksum."""

    file: str
    rows: int
    first: int
    stop: int
    sha256: str


def write_shard(folder: Path, number: int, first: int, stop: int, columns: Mapping[str, np.ndarray]) -> ShardInfo:
    """Writes columns of rows, which belong to the documents `first` to `stop` - 1.

    The file is written under another name and then renamed, so that a shard is complete or does not exist.

    Raises:
        OSError: The file cannot be written, for example because the disk is full. No part of it remains.
    """
    ordered = {name: np.ascontiguousarray(columns[name]) for name in sorted(columns, key=lambda n: _order(columns, n))}
    digest = hashlib.sha256()
    for column in ordered.values():
        digest.update(_bytes(column))
    info = ShardInfo(SHARD.format(number), len(ordered["document"]), first, stop, digest.hexdigest())
    path, partial = folder / info.file, folder / f".{info.file}.partial"
    try:
        with partial.open("wb") as file:
            file.write(_header(ordered, info))
            for column in ordered.values():
                file.write(_bytes(column))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise OSError(f"{path} could not be written: {error.strerror or error}") from error
    sync_folder(folder)
    return info


def _order(columns: Mapping[str, np.ndarray], name: str) -> int:
    """Wide dtypes first, which aligns all values."""
    return -columns[name].dtype.itemsize


def _bytes(column: np.ndarray) -> memoryview:
    return column.reshape(-1).view(np.uint8).data


def _header(columns: Mapping[str, np.ndarray], info: ShardInfo) -> bytes:
    fields = {name: str(value) for name, value in dataclasses.asdict(info).items() if name != "file"}
    header: dict[str, Any] = {"__metadata__": {"format": "jaxlens harvest", **fields}}
    end = 0
    for name, column in columns.items():
        start, end = end, end + column.nbytes
        header[name] = {"dtype": NAMES[column.dtype], "shape": column.shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder survive a power cut, where the system can do so."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# --- reading


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and the offset of its data.

    Raises:
        HarvestError: The file is damaged or incomplete.
    """
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > path.stat().st_size:
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(size))
        columns = [entry for name, entry in header.items() if name != "__metadata__"]
        end = 8 + size + max(entry["data_offsets"][1] for entry in columns)
        if end != path.stat().st_size:
            raise ValueError(f"it has {path.stat().st_size} bytes; expected {end}")
    except FileNotFoundError:
        advice = "open the folder where it is now, or continue the harvest, which writes the file again"
        raise HarvestError(f"there is no file {path}; {advice}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        advice = "delete the file, and the same harvest writes it again"
        raise HarvestError(f"{path} cannot be read: {error}; {advice}") from error
    return header, 8 + size


def read_info(path: Path) -> ShardInfo:
    """What the header of a shard of a harvest says."""
    metadata = read_header(path)[0].get("__metadata__", {})
    try:
        numbers = {name: int(metadata[name]) for name in ("rows", "first", "stop")}
        return ShardInfo(path.name, sha256=metadata["sha256"], **numbers)
    except (KeyError, ValueError, TypeError) as error:
        raise HarvestError(f"{path} is not a shard of a harvest: its metadata lack {error}") from error


def read_columns(path: Path) -> dict[str, np.ndarray]:
    """The columns of a shard as memory-mapped arrays."""
    header, start = read_header(path)
    data = np.memmap(path, np.uint8, "r", start) if path.stat().st_size > start else np.zeros(0, np.uint8)
    return {
        name: data[slice(*entry["data_offsets"])].view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in header.items()
        if name != "__metadata__"
    }


def checksum(path: Path) -> str:
    """The SHA-256 of the values of a shard, as they are on the disk."""
    _, start = read_header(path)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(start)
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
