"""Finds the files of a checkpoint by name or path, and downloads those of a Hugging Face repository."""

import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxlens.checkpoints import toys
from jaxlens.checkpoints.adapters.config import FILE as ADAPTER
from jaxlens.checkpoints.adapters.config import AdapterConfig
from jaxlens.checkpoints.gguf.file import PART, smollm2_path
from jaxlens.checkpoints.hub import FILE_PATTERNS, IGNORED, download, list_files
from jaxlens.checkpoints.published.names import repository_of
from jaxlens.checkpoints.published.training import (
    Labels,
    TrainingCheckpoint,
    file_patterns,
    find_training_checkpoint,
    labels_of,
)
from jaxlens.errors import CheckpointError

ADAPTER_PATTERNS = [ADAPTER, "adapter_model.safetensors", "adapter_model.bin", "tokenizer*", "special_tokens_map.json"]
"""The files that are downloaded from a repository with an adapter."""

SMOLLM2 = "smollm2-135m-instruct"
REMOTE_GGUF = re.compile(r"[\w.-]+/[\w.-]+/[^/].*\.gguf", re.IGNORECASE)
"""A GGUF file of a Hugging Face repository."""
SNAPSHOT = re.compile(r"/snapshots/([0-9a-f]{40})(?:/|$)")
"""The commit in the path of a file that huggingface_hub has downloaded."""


@dataclasses.dataclass(frozen=True)
class Found:
    """The folder or `.gguf` file of a checkpoint.

    `repository` is None for local files. `hub` are the arguments of huggingface_hub for further downloads.
    """

    name: str
    path: Path
    repository: str | None = None
    training: TrainingCheckpoint | None = None
    hub: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def notes(self) -> dict[str, Any]:
        """The fields of a Config that describe the origin of the model. Its name is that of TransformerLens."""
        training = self.training
        described = {} if training is None else {
            "checkpoint_index": training.index, "checkpoint_value": training.value,
            "checkpoint_label_type": training.label_type,
        }  # fmt: skip
        commit = SNAPSHOT.search(self.path.as_posix())
        described["revision"] = commit and commit[1]
        return {"model_name": Path(self.repository or self.name).name or self.name, **described}


def find(
    name_or_path: str | os.PathLike[str], revision: str | None = None, checkpoint_index: int | None = None,
    checkpoint_value: int | None = None, *, config_only: bool = False, **hub: Any,
) -> Found:  # fmt: skip
    """Finds the files of a checkpoint. The arguments are those of `open_checkpoint`.

    With `config_only`, the config.json of a repository is the only file that is downloaded. A repository with an
    adapter is downloaded as a whole.
    """
    name = os.fspath(name_or_path)
    path = smollm2_path() if name == SMOLLM2 else Path(name).expanduser()
    chosen = checkpoint_index, checkpoint_value
    if name and path.is_dir():
        return Found(name, path, training=_training(str(path.resolve()), lambda: toys.files_of(path), *chosen), hub=hub)
    if path.suffix.lower() == ".gguf":
        is_remote = not path.exists() and REMOTE_GGUF.fullmatch(name)
        training = _training(name if is_remote else str(path.resolve()), list, *chosen)  # there are none
        return _gguf_of_repository(name, revision, hub) if is_remote else Found(name, path, training=training)
    if path.is_file():
        raise CheckpointError(f"{path} is a single file; pass the folder that contains it and its config.json")
    repository = repository_of(name)
    training = _training(repository, lambda: repository_files(name, repository, **hub), *chosen)
    if training and training.revision and revision:
        raise ValueError(f"revision is {revision!r}, and a training checkpoint is selected too; pass only one of them")
    files = ["config.json", ADAPTER] if config_only else _files(repository, training)
    ignored = [] if training and training.revision is None else IGNORED
    revision = training.revision if training and training.revision else revision
    folder = download(name, repository, revision, files=files, ignored=ignored, **hub)
    if is_adapter(folder):
        return find_adapter(repository, revision, **hub)
    return Found(name, folder, repository, training, hub)


def _gguf_of_repository(name: str, revision: str | None, hub: Mapping[str, Any]) -> Found:
    """A GGUF file of a repository, "owner/name/file.gguf", with all its parts. The file may be in a folder."""
    owner, repository, file = name.split("/", 2)
    parts = PART.sub(lambda match: f"{match['name']}-*-of-{match['count']}.gguf", file)
    folder = download(name, f"{owner}/{repository}", revision, files=[parts], ignored=[], **hub)
    if not (folder / file).is_file():
        raise CheckpointError(f"the repository {owner}/{repository} has no file {file}; check the name")
    return Found(name, folder / file, hub=hub)


def is_adapter(path: Path) -> bool:
    """Whether a folder contains an adapter of peft."""
    return (path / ADAPTER).is_file()


def find_adapter(name_or_path: str | os.PathLike[str], revision: str | None = None, **hub: Any) -> Found:
    """Finds the files of an adapter: a folder, or a Hugging Face id."""
    if not isinstance(name_or_path, str | os.PathLike):
        given = f"adapter is a {type(name_or_path).__name__}; expected a folder or a Hugging Face id"
        raise TypeError(f"{given}. To use several adapters, merge them into one with peft's add_weighted_adapter")
    name = os.fspath(name_or_path)
    path = Path(name).expanduser()
    if not path.is_dir():
        path = download(name, name, revision, files=ADAPTER_PATTERNS, ignored=["*/*"], **hub)
    if not is_adapter(path):
        raise CheckpointError(f"{name} has no {ADAPTER}; expected a LoRA adapter that peft saved")
    return Found(name, path, None if Path(name).is_dir() else name, hub=hub)


def base_of(adapter: Found) -> Found:
    """Finds the files of the base model of an adapter. Their name is that of the adapter."""
    config = AdapterConfig.read(adapter.path)
    try:
        found = find(config.base, config.fields.get("revision"), **adapter.hub)
    except CheckpointError as error:
        instead = f"pass the base model itself, with adapter={adapter.name!r}"
        problem = f"{adapter.path} is an adapter of {config.base}, which cannot be opened"
        raise CheckpointError(f"{problem}; {instead}: {error}") from error
    return dataclasses.replace(found, name=adapter.name)


def training_labels(name: str, **hub: Any) -> Labels:
    """The values of the training checkpoints of a model or folder, and their kind ("step" or "token").

    Raises:
        CheckpointError: The model has no training checkpoints, or the list of them cannot be downloaded.
    """
    if name and (path := Path(name).expanduser()).is_dir():
        return labels_of(str(path.resolve()), lambda: toys.files_of(path))
    repository = repository_of(name)
    return labels_of(repository, lambda: repository_files(name, repository, **hub))


def repository_files(name: str, repository: str, **hub: Any) -> list[str]:
    """The files of a repository with toy models. Other repositories have no files with training checkpoints."""
    return list_files(name, repository, **hub) if repository.startswith(toys.OWNERS) else []


def _training(
    name: str, files: Callable[[], Iterable[str]], index: int | None, value: int | None
) -> TrainingCheckpoint | None:
    """The training checkpoint with this index or value. None if neither is given."""
    if index is None and value is None:
        return None
    return find_training_checkpoint(name, labels_of(name, files), index, value)


def _files(repository: str, training: TrainingCheckpoint | None) -> list[str]:
    """Patterns of the names of the files to download."""
    if not repository.startswith(toys.OWNERS):
        return FILE_PATTERNS
    return [*toys.CONFIG, *(toys.FINAL if training is None else file_patterns(training.value))]
