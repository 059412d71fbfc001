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
from jaxlens.convert.mxfp4 import Mxfp4Tensors, is_mxfp4
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
    `unread` are fields that nothing reads, by name; there are none unless they were allowed.
    """

    name: str
    path: Path
    family: Family
    cfg: Config
    tensors: Tensors
    source: dict[str, Any] | None
    tokenizer: Callable[[], Tokenizer | None]
    unread: Mapping[str, Any]

    @property
    def model_type(self) -> str:
        """The architecture in Hugging Face's terms; of a model that never had one there, jaxlens's own."""
        return (self.source or {}).get("model_type", self.family.model_types[0])


def open_checkpoint(
    name_or_path: str | os.PathLike[str], revision: str | None = None, *, strict: bool = True
) -> Checkpoint:
    """Finds a checkpoint and reads what its headers say.

    `name_or_path` is a folder (of Hugging Face or of jaxlens), a `.gguf` file, "smollm2-135m-instruct", or else a
    Hugging Face id. Unless it is `strict`, config fields that nothing reads are listed and not refused: good for
    looking, not for loading.
    """
    name = os.fspath(name_or_path)
    path = Path(name).expanduser()
    if name == SMOLLM2:
        return _open_gguf(name, smollm2_path(), strict)
    if name and path.is_dir():
        return _open_folder(name, path, strict)
    if path.suffix.lower() == ".gguf":
        return _open_gguf(name, path, strict)
    if path.is_file():
        raise CheckpointError(f"{path} is a single file; give the folder that it lies in, with its config.json")
    return _open_folder(name, download(name, revision), strict)


def read_config(fields: Mapping[str, Any]) -> tuple[Family, Config]:
    """The family of a config.json and the Config that it describes.

    Raises:
        CheckpointError: the architecture is unknown, or a field is missing, of the wrong type, beyond what can be
            expressed, or not read by anyone.
    """
    family, cfg, hf = map_config(fields)
    hf.check_all_read(family.unused)
    return family, cfg


def map_config(fields: Mapping[str, Any]) -> tuple[Family, Config, Reader]:
    """What `read_config` returns, and the fields, which remember which of them were read."""
    family = family_of(fields.get("model_type"))
    try:
        hf = Reader(complete(fields))
        return family, family.config(hf), hf
    except CheckpointError:
        raise
    except (ValueError, ArithmeticError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"config.json describes no model that can be built: {error}") from error


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Puts the path in front of an error that does not have it."""
    try:
        yield
    except CheckpointError as error:
        if str(path) in str(error):
            raise
        raise CheckpointError(f"{path}: {error}") from error


def _open_folder(name: str, path: Path, strict: bool) -> Checkpoint:
    if (path / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{path} holds an adapter (adapter_config.json), which stands for changes of a model's weights; make them "
            "with peft: PeftModel.from_pretrained(model, folder).merge_and_unload().save_pretrained(new_folder)"
        )
    if not (path / "config.json").is_file():
        held = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
        raise CheckpointError(
            f"{path} has no config.json; wanted a folder with config.json and safetensors, and this one holds {held}"
        )
    if pipes := [one.name for one in path.iterdir() if one.exists() and not (one.is_file() or one.is_dir())]:
        raise CheckpointError(f"{path} holds {', '.join(pipes)}, which is neither a file nor a folder; remove it")
    fields = read_json(path / "config.json")
    has_tokenizer = any(True for pattern in TOKENIZER_FILES for _ in path.glob(pattern))

    def tokenizer() -> Tokenizer | None:
        try:
            return Tokenizer.from_folder(path) if has_tokenizer else None
        except CheckpointError:
            raise
        except (ValueError, TypeError, LookupError, AttributeError, OSError) as error:
            raise CheckpointError(f"{path} holds no tokenizer that can be read: {error}") from error

    def tensors() -> Tensors:
        return Mxfp4Tensors(TensorFolder(path)) if is_mxfp4(fields) else TensorFolder(path)

    return _opened(name, path, fields, strict, tensors, tokenizer)


def _open_gguf(name: str, path: Path, strict: bool) -> Checkpoint:
    file = GGUFFile(path)
    return _opened(name, path, file.config, strict, lambda: file, file.tokenizer)


def _opened(
    name: str, path: Path, fields: dict[str, Any], strict: bool, tensors: Callable[[], Tensors],
    tokenizer: Callable[[], Tokenizer | None],
) -> Checkpoint:  # fmt: skip
    with naming(path):
        family, cfg, hf = map_config(fields)
        if strict:
            hf.check_all_read(family.unused)
        return Checkpoint(
            name, path, family, cfg, tensors(), family.source(fields), tokenizer, hf.unread(family.unused)
        )  # fmt: skip
