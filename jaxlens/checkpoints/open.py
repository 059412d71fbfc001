"""Opens a checkpoint by name or path: reads config.json and the headers of its files, but no weights."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxlens.checkpoints.families import family_of
from jaxlens.checkpoints.folder_reader import TensorFolder
from jaxlens.checkpoints.gguf.file import GGUFFile, smollm2_path
from jaxlens.checkpoints.hub import download
from jaxlens.checkpoints.mxfp4 import Mxfp4Tensors, is_mxfp4
from jaxlens.checkpoints.rules.hf_config import Reader, complete
from jaxlens.checkpoints.rules.rule import Family, Tensors
from jaxlens.checkpoints.safetensors_reader import read_json
from jaxlens.config import Config
from jaxlens.errors import CheckpointError
from jaxlens.text.tokenizer import Tokenizer

SMOLLM2 = "smollm2-135m-instruct"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.*", "merges.txt", "*.tiktoken")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint: everything except its weights.

    `source` is the Hugging Face config.json, which an export needs, or None. `unread` are the config.json fields that
    jaxlens does not read. It is empty unless the checkpoint was opened with `strict=False`.
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
        """The model_type of `source`, or of the native format if there is no `source`."""
        return (self.source or {}).get("model_type", self.family.model_types[0])


def open_checkpoint(
    name_or_path: str | os.PathLike[str], revision: str | None = None, *, strict: bool = True
) -> Checkpoint:
    """Opens a checkpoint: finds its files, and reads its config and headers.

    `name_or_path` is a folder (Hugging Face or native), a `.gguf` file, "smollm2-135m-instruct", or a Hugging Face id.
    With `strict=False`, config.json fields that jaxlens does not read are listed in `unread` and are no error.

    Raises:
        CheckpointError: The checkpoint cannot be found or read, or its architecture is not supported.
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
        raise CheckpointError(f"{path} is a single file; pass the folder that contains it and its config.json")
    return _open_folder(name, download(name, revision), strict)


def read_config(fields: Mapping[str, Any]) -> tuple[Family, Config]:
    """The family and the Config of a config.json. Raises a CheckpointError for fields that jaxlens does not read."""
    family, cfg, hf = map_config(fields)
    hf.check_all_read(family.unused)
    return family, cfg


def map_config(fields: Mapping[str, Any]) -> tuple[Family, Config, Reader]:
    """The family and the Config of a config.json, and its reader, which records the fields that were read."""
    family = family_of(fields.get("model_type"))
    try:
        hf = Reader(complete(fields))
        return family, family.config(hf), hf
    except CheckpointError:
        raise
    except (ValueError, ArithmeticError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"config.json does not describe a valid model: {error}") from error


@contextlib.contextmanager
def path_in_errors(path: str | Path) -> Iterator[None]:
    """Adds the path to the message of a CheckpointError that does not contain it."""
    try:
        yield
    except CheckpointError as error:
        if str(path) in str(error):
            raise
        raise CheckpointError(f"{path}: {error}") from error


def _open_folder(name: str, path: Path, strict: bool) -> Checkpoint:
    if (path / "adapter_config.json").is_file():
        merge = "PeftModel.from_pretrained(model, folder).merge_and_unload().save_pretrained(new_folder)"
        kind = "contains an adapter (adapter_config.json), which modifies the weights of a model"
        raise CheckpointError(f"{path} {kind}; merge the two with peft: {merge}")
    if not (path / "config.json").is_file():
        contents = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
        expected = "expected a folder with config.json, and safetensors or PyTorch files"
        raise CheckpointError(f"{path} has no config.json; {expected}. It contains {contents}")
    if special := [file.name for file in path.iterdir() if file.exists() and not (file.is_file() or file.is_dir())]:
        raise CheckpointError(f"{path} contains {', '.join(special)}, which is no regular file or folder; remove it")
    fields = read_json(path / "config.json")
    has_tokenizer = any(any(path.glob(pattern)) for pattern in TOKENIZER_FILES)

    def tokenizer() -> Tokenizer | None:
        try:
            return Tokenizer.from_folder(path) if has_tokenizer else None
        except CheckpointError:
            raise
        except (ValueError, TypeError, LookupError, AttributeError, OSError) as error:
            raise CheckpointError(f"{path} has a tokenizer that cannot be read: {error}") from error

    def tensors() -> Tensors:
        return Mxfp4Tensors(TensorFolder(path)) if is_mxfp4(fields) else TensorFolder(path)

    return _checkpoint(name, path, fields, strict, tensors, tokenizer)


def _open_gguf(name: str, path: Path, strict: bool) -> Checkpoint:
    file = GGUFFile(path)
    return _checkpoint(name, path, file.config, strict, lambda: file, file.tokenizer)


def _checkpoint(
    name: str, path: Path, fields: dict[str, Any], strict: bool, tensors: Callable[[], Tensors],
    tokenizer: Callable[[], Tokenizer | None],
) -> Checkpoint:  # fmt: skip
    with path_in_errors(path):
        family, cfg, hf = map_config(fields)
        if strict:
            hf.check_all_read(family.unused)
        source, unread = family.source(fields), hf.unread(family.unused)
        return Checkpoint(name, path, family, cfg, tensors(), source, tokenizer, unread)
