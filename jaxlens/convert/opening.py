"""A name or a path becomes an opened checkpoint: its config mapped, its headers read, no weight touched."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxlens.config import Config
from jaxlens.convert.families import family_of
from jaxlens.convert.files import TensorFolder, read_json
from jaxlens.convert.gguf import GGUFFile, smollm2_path
from jaxlens.convert.hub import download
from jaxlens.convert.reader import Reader, complete
from jaxlens.convert.rules import Family, Tensors
from jaxlens.errors import CheckpointError
from jaxlens.tokenizer import Tokenizer

SMOLLM2 = "smollm2-135m-instruct"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.*", "merges.txt", "*.tiktoken")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose headers have been read: everything but its weights.

    `source` is the config.json in Hugging Face's terms that an export of this model is written with, or None.
    """

    name: str
    family: Family
    cfg: Config
    tensors: Tensors
    source: dict[str, Any] | None
    tokenizer: Callable[[], Tokenizer | None]


def open_checkpoint(name_or_path: str | os.PathLike[str], revision: str | None = None) -> Checkpoint:
    """Finds a checkpoint and reads what its headers say.

    `name_or_path` is a folder (of Hugging Face or of jaxlens), a `.gguf` file, "smollm2-135m-instruct", or else a
    Hugging Face id.
    """
    name = os.fspath(name_or_path)
    path = Path(name).expanduser()
    if name == SMOLLM2:
        return _open_gguf(name, smollm2_path())
    if name and path.is_dir():
        return _open_folder(name, path)
    if path.suffix == ".gguf":
        return _open_gguf(name, path)
    if path.is_file():
        raise CheckpointError(f"{path} is a single file; give the folder that it lies in, with its config.json")
    return _open_folder(name, download(name, revision))


def read_config(fields: Mapping[str, Any]) -> tuple[Family, Config]:
    """The family of a config.json and the Config that it describes.

    Raises:
        CheckpointError: the architecture is unknown, or a field is missing, of the wrong type, beyond what can be
            expressed, or not read by anyone.
    """
    family = family_of(fields.get("model_type"))
    hf = Reader(complete(fields))
    try:
        cfg = family.config(hf)
    except (ValueError, ArithmeticError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"config.json describes no model that can be built: {error}") from error
    hf.check_all_read(family.unused)
    return family, cfg


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Puts the path in front of an error that does not have it."""
    try:
        yield
    except CheckpointError as error:
        if str(path) in str(error):
            raise
        raise CheckpointError(f"{path}: {error}") from error


def _open_folder(name: str, path: Path) -> Checkpoint:
    if not (path / "config.json").is_file():
        held = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
        raise CheckpointError(
            f"{path} has no config.json; wanted a folder with config.json and safetensors, and this one holds {held}"
        )
    fields = read_json(path / "config.json")
    with naming(path):
        family, cfg = read_config(fields)
    has_tokenizer = any(True for pattern in TOKENIZER_FILES for _ in path.glob(pattern))

    def tokenizer() -> Tokenizer | None:
        return Tokenizer.from_folder(path) if has_tokenizer else None

    return Checkpoint(name, family, cfg, TensorFolder(path), family.source(fields), tokenizer)


def _open_gguf(name: str, path: Path) -> Checkpoint:
    file = GGUFFile(path)
    with naming(path):
        family, cfg = read_config(file.config)
    return Checkpoint(name, family, cfg, file, family.source(file.config), file.tokenizer)
