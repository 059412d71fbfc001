"""Opens a checkpoint by name or path: reads config.json and the headers of its files, but no weights."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxlens.checkpoints import multimodal, toys
from jaxlens.checkpoints.adapters.merge import merged
from jaxlens.checkpoints.adapters.weights import Adapter, LowRank
from jaxlens.checkpoints.families import family_of
from jaxlens.checkpoints.file_format import file_format
from jaxlens.checkpoints.find import Found, base_of, find, find_adapter, is_adapter
from jaxlens.checkpoints.folder_reader import TensorFolder, has_weights
from jaxlens.checkpoints.folder_writer import GENERATION_CONFIG
from jaxlens.checkpoints.gguf.file import GGUFFile, gguf_in
from jaxlens.checkpoints.heads import recognized, with_head
from jaxlens.checkpoints.hub import tokenizer_named
from jaxlens.checkpoints.quantized.methods import read_quantization, with_files, without_quantization
from jaxlens.checkpoints.quantized.tensors import dequantized
from jaxlens.checkpoints.rules.hf_config import Reader, complete
from jaxlens.checkpoints.rules.rule import Family, Tensors
from jaxlens.checkpoints.safetensors_reader import read_json
from jaxlens.checkpoints.stacked_experts import unstacked
from jaxlens.config import Config
from jaxlens.errors import CheckpointError
from jaxlens.text.tokenizer import Tokenizer

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.*", "merges.txt", "*.tiktoken")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint: everything except its weights.

    `source` is the Hugging Face config.json, which an export needs, or None. `unread` are the config.json fields that
    jaxlens does not read. It is empty unless the checkpoint was opened with `strict=False`. `format` is a description
    of its files. `adapter` is the adapter that `tensors` include. Its `updates` are not included, if it was opened with
    `merge=False`. `part_of` is the model_type of the multimodal model whose language model this is, or None.
    `quantization` describes the way in which quantized weights are stored. In `tensors`, they are floats.
    """

    name: str
    path: Path
    family: Family
    cfg: Config
    tensors: Tensors
    source: dict[str, Any] | None
    tokenizer: Callable[[], Tokenizer | None]
    unread: Mapping[str, Any]
    format: str = ""
    adapter: Adapter | None = None
    updates: Mapping[str, LowRank] = dataclasses.field(default_factory=dict)
    part_of: str | None = None
    quantization: str | None = None

    @property
    def model_type(self) -> str:
        """The model_type of `source`, or of the native format if there is no `source`."""
        return (self.source or {}).get("model_type", self.family.model_types[0])


def open_checkpoint(
    name_or_path: str | os.PathLike[str], revision: str | None = None, *, checkpoint_index: int | None = None,
    checkpoint_value: int | None = None, strict: bool = True, token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None, local_files_only: bool = False,
    adapter: str | os.PathLike[str] | None = None, merge: bool = True,
) -> Checkpoint:  # fmt: skip
    """Opens a checkpoint: finds its files, and reads its config and headers.

    `name_or_path` is a folder (Hugging Face, GGUF or native), a `.gguf` file, "smollm2-135m-instruct", a Hugging Face
    id, a GGUF file of a Hugging Face id ("owner/name/file.gguf"), or a name of TransformerLens such as "gpt2-small".
    `checkpoint_index` or `checkpoint_value` selects a training checkpoint (`published/training.py`). With
    `strict=False`, config.json fields that jaxlens does not read are listed in `unread` and are no error. `token`,
    `cache_dir` and `local_files_only` are arguments of huggingface_hub.

    `adapter` is the folder or Hugging Face id of a LoRA adapter that peft saved, which is merged into the weights. If
    `name_or_path` is itself an adapter, its base model is opened and the adapter merged. With `merge=False`, the
    adapter is kept apart.

    Raises:
        CheckpointError: The checkpoint or the adapter cannot be found or read, its architecture is not supported, or it
            has no training checkpoints.
        ValueError: There is no training checkpoint with this index or value.
    """
    hub = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    found = find(name_or_path, revision, checkpoint_index, checkpoint_value, **hub)
    if adapter is not None:
        added = find_adapter(adapter, **hub)
    else:
        added = found if is_adapter(found.path) else None
        found = base_of(found) if added else found
    if not (merge or added):
        raise ValueError(f"merge is False, but {found.name} is no adapter; pass one as adapter=")
    return _open(found, strict, added and AdapterFolder(added, merge))


def open_config(name_or_path: str | os.PathLike[str], revision: str | None = None, **found_by: Any) -> Config:
    """The Config of a checkpoint. Of a Hugging Face repository, only config.json is downloaded.

    The arguments are those of `open_checkpoint`.
    """
    found = find(name_or_path, revision, config_only=True, **found_by)
    if is_adapter(found.path):
        return _open(base_of(found), True, AdapterFolder(found, merge=True)).cfg
    if found.repository is None:
        return _open(found, strict=True).cfg
    fields = read_json(found.path / "config.json")
    if toys.is_toy(fields):
        fields = {**fields, "model_type": toys.architecture(fields, _names(found))}
    with path_in_errors(found.name):
        return read_config(fields)[1].replace(**found.notes)


def read_config(fields: Mapping[str, Any]) -> tuple[Family, Config]:
    """The family and the Config of a config.json. Raises a CheckpointError for fields that jaxlens does not read."""
    family, cfg, hf = map_config(fields)
    hf.check_all_read(family.unused)
    return family, cfg


def map_config(fields: Mapping[str, Any]) -> tuple[Family, Config, Reader]:
    """The family and the Config of a config.json, and its reader, which records the fields that were read."""
    wrapper = multimodal.wrapper_of(fields)
    if wrapper is None:
        family = family_of(fields.get("model_type"))
    try:
        if wrapper is None:
            text = hf = Reader(complete(fields))
        else:
            family, text, hf = multimodal.language_model(wrapper, fields)
        cfg = family.config(text)
        read_quantization(hf, fields)  # before other fields are reported as unread
        return *((family, cfg) if wrapper else with_head(family, cfg, fields)), hf
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


@dataclasses.dataclass(frozen=True)
class AdapterFolder:
    """An adapter to open with its base model, and whether to merge it."""

    found: Found
    merge: bool


def _open(found: Found, strict: bool, adapter: AdapterFolder | None = None) -> Checkpoint:
    path = found.path
    if path.is_dir() and not has_weights(path):
        path = gguf_in(path) or path
    if path.is_dir() or path.suffix.lower() != ".gguf":
        return _open_folder(found, strict, adapter)
    file, found = GGUFFile(path), dataclasses.replace(found, path=path)
    return _checkpoint(found, file.config, strict, lambda: file, file.tokenizer, adapter)


def _open_folder(found: Found, strict: bool, adapter: AdapterFolder | None) -> Checkpoint:
    path = found.path
    if not (path / "config.json").is_file():
        contents = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
        expected = "expected a folder with config.json, and safetensors or PyTorch files"
        remote = f'. For a GGUF file, pass "{found.repository}/FILE.gguf"' if found.repository else ""
        raise CheckpointError(f"{path} has no config.json; {expected}. It contains {contents}{remote}")
    if special := [file.name for file in path.iterdir() if file.exists() and not (file.is_file() or file.is_dir())]:
        raise CheckpointError(f"{path} contains {', '.join(special)}, which is no regular file or folder; remove it")
    fields = with_files(path, read_json(path / "config.json"))
    if toys.is_toy(fields):
        return _open_toy(found, fields, strict, adapter)
    elsewhere, folder = found.repository if found.training else None, lambda: TensorFolder(path)
    return _checkpoint(found, fields, strict, folder, lambda: _tokenizer(found, elsewhere), adapter)


def _open_toy(found: Found, fields: dict[str, Any], strict: bool, adapter: AdapterFolder | None) -> Checkpoint:
    weights = toys.open_weights(toys.weights_file(found.path, found.training and found.training.value))
    kind = toys.architecture(fields, _names(found), weights)
    completed, tensors = toys.as_checkpoint(fields, kind, weights)
    return _checkpoint(
        found, completed, strict, lambda: tensors, lambda: _tokenizer(found, fields.get("tokenizer_name")), adapter
    )


def _generation_config(path: Path) -> dict[str, Any] | None:
    """The generation_config.json of a folder, or None if there is no such file."""
    if not (file := path / GENERATION_CONFIG).is_file():
        return None
    fields = read_json(file)
    given = fields.get("eos_token_id")
    ids = given if isinstance(given, list) else [given]
    if given is not None and not all(type(token) is int and token >= 0 for token in ids):
        raise CheckpointError(f"{file}: eos_token_id is {given!r}; expected a token, a list of tokens or null")
    return fields


def _names(found: Found) -> tuple[str, ...]:
    """The name of the repository or folder of a model, and of its folder in the cache of huggingface_hub."""
    path = found.path.resolve()
    cached = (parent.name for parent in path.parents[1:2] if parent.name.startswith("models--"))
    return (found.repository or path.name, *cached)


def _tokenizer(found: Found, elsewhere: str | None) -> Tokenizer | None:
    """The tokenizer of a folder. If it has none, that of the repository or folder `elsewhere`."""
    path = found.path
    if not any(any(path.glob(pattern)) for pattern in TOKENIZER_FILES):
        return elsewhere and tokenizer_named(elsewhere, **found.hub)
    try:
        return Tokenizer.from_folder(path, found.repository)
    except CheckpointError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, OSError) as error:
        raise CheckpointError(f"{path} has a tokenizer that cannot be read: {error}") from error


def _checkpoint(
    found: Found, fields: dict[str, Any], strict: bool, tensors: Callable[[], Tensors],
    tokenizer: Callable[[], Tokenizer | None], adapter: AdapterFolder | None,
) -> Checkpoint:  # fmt: skip
    with path_in_errors(found.path):
        family, cfg, hf = map_config({**fields, "architectures": None})
        if strict:
            hf.check_all_read(family.unused)
        read = dequantized(tensors(), read_quantization(hf, fields), family.input_first)
        described, quantization = file_format(read, fields), getattr(read, "description", None)
        fields, opened, updates, part_of = without_quantization(fields), None, {}, None
        if wrapper := multimodal.wrapper_of(fields):
            part_of = fields["model_type"]
            family, cfg = multimodal.as_stored(wrapper, fields, family, cfg, read)
        read = unstacked(read, family.rules(cfg))
        if adapter is not None:
            opened, folder = Adapter(adapter.found.path), adapter.found
            fields, read, updates = merged(opened, family, cfg, fields, read, adapter.merge)
            family, cfg, hf = map_config({**fields, "architectures": None})
            if any(any(folder.path.glob(pattern)) for pattern in TOKENIZER_FILES):
                tokenizer = functools.partial(_tokenizer, folder, None)
        if wrapper is None:
            fields = recognized(fields, family, cfg, read)
            family, cfg = with_head(family, cfg, fields)
        elif adapter is not None:
            family, cfg = multimodal.as_stored(wrapper, fields, family, cfg, read)
        source, unread = family.source(fields), hf.unread(family.unused)
        cfg = cfg.replace(**found.notes, generation_config=_generation_config(found.path))
        return Checkpoint(
            found.name, found.path, family, cfg, read, source, tokenizer, unread, described, opened, updates, part_of,
            quantization,
        )  # fmt: skip
