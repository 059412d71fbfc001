"""Finds the members of the zip file that `torch.save` writes, and reads them: stored members are memory-mapped."""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from jaxlens.errors import CheckpointError

LOCAL_HEADER = b"PK\3\4"
UTF8 = 0x800
"""The flag of a member whose name is encoded in UTF-8."""

MAX_RATIO = 100
"""The largest ratio of a member's size to its compressed size, above 1 MiB. Weights have smaller ratios."""


@dataclass(frozen=True)
class Member:
    """The location of a member in the file, its stored size, its size without compression, and its checksum.

    A checksum of 0 was not computed, as in files saved with `torch.serialization.set_crc32_options(False)`.
    """

    start: int
    stored_size: int
    size: int
    compression: int
    checksum: int


class Archive:
    """The members of a zip file, by their names without the first folder.

    The constructor reads the directory of the file. It raises a CheckpointError if members overlap, occur twice, are
    encrypted or reach past the end of the file.
    """

    def __init__(self, path: Path):
        self.path, self._state = path, _state(path)
        self._checked: set[str] = set()  # the members whose checksum was compared
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            located = {entry.filename: _locate(file, entry) for entry in entries}
        if len(located) < len(entries) or len({name.partition("/")[0] for name in located}) != 1:
            raise CheckpointError("a member occurs twice, or its members are not in one folder; download it again")
        ranges = sorted((start, member.start + member.stored_size) for start, member in located.values())
        ends = [end for _, end in ranges]
        if any(start < end for end, (start, _) in zip(ends, ranges[1:], strict=False)) or max(ends) > self.size:
            raise CheckpointError("its members overlap, or reach past the end of the file; download it again")
        self.members = {name.partition("/")[2]: member for name, (_, member) in located.items()}

    @property
    def size(self) -> int:
        """The size of the file in bytes."""
        return self._state[0]

    def read(self, name: str) -> np.ndarray:
        """The bytes of a member, as a view of the memory-mapped file unless the member is compressed."""
        value = self._values(name, self.members[name])
        if name not in self._checked and self.members[name].checksum not in (0, zlib.crc32(value)):
            raise CheckpointError(f"{name} does not have the checksum in the file's directory; download it again")
        self._checked.add(name)
        return value

    def _values(self, name: str, member: Member) -> np.ndarray:
        if _state(self.path) != self._state:
            raise CheckpointError("it was changed after it was opened; open it again")
        if not member.size:
            return np.empty(0, np.uint8)
        raw = np.memmap(self.path, np.uint8, "r", member.start, member.stored_size)
        if member.compression == zipfile.ZIP_STORED:
            return raw
        if member.size > 2**20 + MAX_RATIO * member.stored_size:
            sizes = f"has {member.stored_size:,} bytes and unpacks to {member.size:,}"
            raise CheckpointError(f"{name} {sizes}; expected at most {MAX_RATIO} times as many")
        unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
        value = unpacker.decompress(raw, member.size)
        if len(value) < member.size or not unpacker.eof:
            raise CheckpointError(f"{name} does not unpack to {member.size:,} bytes; download the file again")
        return np.frombuffer(value, np.uint8)


def _locate(file: BinaryIO, entry: zipfile.ZipInfo) -> tuple[int, Member]:
    """The start of the local header of a member, and the location of its data."""
    supported = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    if entry.flag_bits & 1 or entry.compress_type not in supported:
        raise CheckpointError(f"{entry.filename} is encrypted, or compressed with method {entry.compress_type}")
    if entry.compress_type == zipfile.ZIP_STORED and entry.compress_size != entry.file_size:
        raise CheckpointError(f"{entry.filename} has {entry.compress_size} bytes; expected {entry.file_size}")
    file.seek(entry.header_offset)
    header = file.read(30)
    name_size, extra_size = (int.from_bytes(header[i : i + 2], "little") for i in (26, 28))
    name = file.read(name_size).decode("utf-8" if entry.flag_bits & UTF8 else "cp437")
    if not header.startswith(LOCAL_HEADER) or name != entry.orig_filename:
        raise CheckpointError(f"{entry.filename} has no header at byte {entry.header_offset}; download the file again")
    start = entry.header_offset + 30 + name_size + extra_size
    member = Member(start, entry.compress_size, entry.file_size, entry.compress_type, entry.CRC)
    return entry.header_offset, member


def _state(path: Path) -> tuple[int, int]:
    """The size of a file and the time of its last change."""
    state = path.stat()
    return state.st_size, state.st_mtime_ns
