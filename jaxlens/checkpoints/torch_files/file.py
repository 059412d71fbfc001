"""A file that `torch.save` wrote, with the interface of a checkpoint's tensors."""

import contextlib
import math
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxlens.checkpoints.torch_files.archive import LOCAL_HEADER, Archive
from jaxlens.checkpoints.torch_files.dtypes import DTYPES
from jaxlens.checkpoints.torch_files.unpickler import Other, StoredTensor, Unpickler
from jaxlens.checkpoints.validate import shortened
from jaxlens.errors import CheckpointError

CONTAINERS = ("state_dict", "model_state_dict", "model", "module")
"""The keys under which training scripts save the weights, beside the state of the optimizer."""

MAX_REPEATED = 16 * 2**20
"""The memory for tensors that are larger than their storage (stride 0), in addition to the size of the file."""

MAX_NAME = 500


class TorchFile:
    """The tensors of a file that `torch.save` wrote: a state dict, or a dict that contains one (see `CONTAINERS`).

    The constructor reads the file's directory and pickle. It raises a CheckpointError if they are damaged, or name
    anything but tensors and plain values. Nothing of the pickle is executed. `read` returns a view of the memory-mapped
    file, or a copy of values that are not contiguous or not aligned. A warning lists the entries that are not tensors.

        file = TorchFile("pytorch_model.bin")
        file.shape("transformer.wte.weight"), file.dtype("transformer.wte.weight")     # (50257, 768), "F32"
        file.read("transformer.wte.weight")                                            # float32 [50257, 768]
    """

    format = "PyTorch"

    def __init__(self, path: str | Path):
        self.path = Path(path)
        with self._reading():
            _check_format(self.path)
            self._archive = Archive(self.path)
            _check_members(self._archive)
            value = Unpickler(self._archive.read("data.pkl").tobytes()).value
            self._tensors, others = _state_dict(value)
            self._check_tensors()
        if others:
            problem = f"these entries are no weights, and are not loaded: {_listed(others)}"
            warnings.warn(f"{self.path}: {problem}", stacklevel=2)

    def names(self) -> list[str]:
        return list(self._tensors)

    def dtype(self, name: str) -> str:
        """The dtype as safetensors spells it: "F32", "BF16", "I64", …"""
        return self._tensors[name].dtype

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def read(self, name: str) -> np.ndarray:
        """A tensor in its stored dtype, contiguous and read-only."""
        tensor = self._tensors[name]
        dtype = DTYPES[tensor.dtype]
        if 0 in tensor.shape:
            return np.empty(tensor.shape, dtype)
        with self._reading():
            data = self._archive.read(f"data/{tensor.storage.key}")
            strides = [dtype.itemsize * stride for stride in tensor.strides]
            array = np.ndarray(tensor.shape, dtype, data, dtype.itemsize * tensor.offset, strides)
            return np.require(array, requirements=["C", "ALIGNED"])

    def _check_tensors(self) -> None:
        """Raises a CheckpointError unless every tensor is inside its storage, and every storage has its size."""
        repeated = 0
        for name, tensor in self._tensors.items():
            if len(name) > MAX_NAME or not name.isprintable():
                raise CheckpointError(f"a tensor is called {name[:100]!r}; expected a short name without control codes")
            member = self._archive.members.get(f"data/{tensor.storage.key}")
            if member is None or member.size != tensor.storage.size:
                actual = "no data" if member is None else f"{member.size:,} bytes"
                raise CheckpointError(
                    f"{name} needs {tensor.storage.size:,} bytes, and has {actual}; download it again"
                )
            item_size, count = DTYPES[tensor.dtype].itemsize, math.prod(tensor.shape)
            steps = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True))
            if count and (tensor.offset + steps + 1) * item_size > member.size:
                raise CheckpointError(f"{name} of shape {tensor.shape} ends after its {member.size:,} bytes of data")
            repeated += count * item_size if count * item_size > member.size else 0
            if repeated > self._archive.size + MAX_REPEATED:
                problem = f"{name} of shape {tensor.shape} repeats the values of {member.size:,} bytes"
                raise CheckpointError(f"{problem}; save it without stride 0 (`tensor.contiguous()`)")

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Converts errors of the libraries, and of functions with invalid arguments, into CheckpointErrors."""
        try:
            yield
        except (
            OSError, ValueError, TypeError, LookupError, EOFError, ArithmeticError, RuntimeError, NotImplementedError,
            struct.error, zlib.error, zipfile.BadZipFile,
        ) as error:  # fmt: skip
            reason = str(error) if isinstance(error, CheckpointError) else f"{error!r:.200}; download it again"
            raise CheckpointError(f"{self.path} cannot be read as a PyTorch file: {reason}") from error


def _check_format(path: Path) -> None:
    """Raises a CheckpointError for files in another format, with the command that converts them."""
    if not path.is_file():  # opening a pipe would block
        raise CheckpointError("it is no regular file")
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError("it is a Git LFS pointer; run `git lfs pull`")
    if start[:1] == b"\x80" and start[2:].startswith(b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"):  # torch's magic number
        convert = f"torch.save(torch.load({path.name!r}, map_location='cpu', weights_only=True), {path.name!r})"
        raise CheckpointError(f"torch before 1.6 wrote it, or its legacy format was chosen; convert it: {convert}")
    if not start.startswith(LOCAL_HEADER):
        raise CheckpointError(f"it starts with {start[:8]!r}; expected the zip file that torch.save writes")


def _check_members(archive: Archive) -> None:
    """Raises a CheckpointError for zip files of another kind, and for values in big-endian byte order."""
    if "constants.pkl" in archive.members:
        convert = "torch.save(torch.jit.load(file, map_location='cpu').state_dict(), new_file)"
        raise CheckpointError(f"it contains a TorchScript program; convert it: {convert}")
    if "data.pkl" not in archive.members:
        found = ", ".join(list(archive.members)[:3])
        raise CheckpointError(f"it contains {found:.200} and no data.pkl; expected the zip file that torch.save writes")
    order = archive.read("byteorder").tobytes() if "byteorder" in archive.members else b"little"
    if order != b"little":
        convert = "torch.save(torch.load(file), new_file) on a little-endian machine"
        raise CheckpointError(f"its byte order is {order[:20]!r}; expected b'little'; convert it: {convert}")


def _state_dict(value: Any) -> tuple[dict[str, StoredTensor], dict[str, Any]]:
    """The tensors of a state dict, and all other entries, by name. The state dict may be inside other dicts."""
    path, others = "", {}
    while inner := [key for key in CONTAINERS if type(value) is dict and type(value.get(key)) is dict]:
        if len(inner) > 1 or path.count(".") > len(CONTAINERS):
            keys = ", ".join(path + key for key in inner)
            raise CheckpointError(f"it contains several state dicts ({keys}); save only the weights of the model")
        others |= {f"{path}{key!s:.50}": entry for key, entry in value.items() if key != inner[0]}
        path, value = f"{path}{inner[0]}.", value[inner[0]]
    if type(value) is not dict:
        call = "torch.save(model.state_dict(), file)"
        raise CheckpointError(f"it contains a {_type(value)}; expected a dict from names to tensors, as in {call}")
    tensors = {key: entry for key, entry in value.items() if type(key) is str and isinstance(entry, StoredTensor)}
    others |= {f"{path}{key!s:.50}": entry for key, entry in value.items() if key not in tensors}
    if not tensors:
        raise CheckpointError(f"it contains no tensors by name, only {_listed(others) or 'an empty dict'}")
    return tensors, others


def _listed(entries: dict[str, Any]) -> str:
    return shortened([f"{name} ({_type(entry)})" for name, entry in entries.items()])


def _type(entry: Any) -> str:
    """The type of an entry, without its contents, which may be large or refer to themselves."""
    if isinstance(entry, Other):
        return entry.type
    return "tensor" if isinstance(entry, StoredTensor) else type(entry).__name__
