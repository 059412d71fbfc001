"""Downloads checkpoints from Hugging Face."""

import contextlib
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxlens.checkpoints.folder_reader import NOT_WEIGHTS, SAFETENSORS
from jaxlens.checkpoints.published.names import official_name, similar_names
from jaxlens.errors import CheckpointError
from jaxlens.text.tokenizer import Tokenizer

FILE_PATTERNS = [
    *("config.json", "generation_config.json", "adapter_config.json"),
    *("quantize_config.json", "quant_config.json"),
    *("model*.safetensors", "gptq_model*.safetensors", "model.safetensors.index.json"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.tiktoken"),
    *("spiece.model", "chat_template*"),
]
"""The files of a repository that are downloaded. They contain one copy of the weights."""

PYTORCH_PATTERNS = ["pytorch_model*.bin", "pytorch_model*.bin.index.json", "*.pth", "*.pt"]
"""The files that are downloaded from a repository without safetensors."""

IGNORED = ["*/*", *NOT_WEIGHTS]
"""The files of a repository that are not downloaded: those in its folders, and those with other data than weights."""


def download(
    name: str, repository: str, revision: str | None = None, *, files: Sequence[str] = FILE_PATTERNS,
    ignored: Sequence[str] = IGNORED, **hub: Any,
) -> Path:  # fmt: skip
    """The local folder of a Hugging Face repository. Downloads the files that are not in the cache.

    `name` is the name that the caller used for the repository. `files` and `ignored` are patterns of file names. `hub`
    are arguments of huggingface_hub: token, cache_dir and local_files_only.
    """
    import huggingface_hub

    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", repository):
        not_local = f"{name!r} is not a local folder or file"
        raise CheckpointError(f"{not_local}, and not a Hugging Face id (owner/name); check the path")
    options = {"revision": revision, **hub}
    with _explained(name, repository, revision):
        patterns = {"allow_patterns": [*files], "ignore_patterns": [*ignored]}
        folder = Path(huggingface_hub.snapshot_download(repository, **patterns, **options))
        if files != FILE_PATTERNS or SAFETENSORS.files(folder):
            return folder
        patterns = {"allow_patterns": PYTORCH_PATTERNS, "ignore_patterns": [*ignored]}
        return Path(huggingface_hub.snapshot_download(repository, **patterns, **options))


def list_files(name: str, repository: str, *, token: str | bool | None = None, **hub: Any) -> list[str]:
    """The names of all files of a repository, which are not in the cache."""
    import huggingface_hub

    with _explained(name, repository, None):
        if hub.get("local_files_only"):
            raise OSError("local_files_only is set, and the list of files is not in the cache")
        return huggingface_hub.list_repo_files(repository, token=token)


def tokenizer_named(name: str, revision: str | None = None, **hub: Any) -> Tokenizer | None:
    """The tokenizer of a folder or a Hugging Face id, or None, with a warning, if it cannot be loaded."""
    try:
        return Tokenizer.from_pretrained(name, revision, **hub)
    except CheckpointError as error:
        warnings.warn(f"the model has no tokenizer: {error}", UserWarning, stacklevel=3)
        return None


@contextlib.contextmanager
def _explained(name: str, repository: str, revision: str | None) -> Iterator[None]:
    """Converts errors of huggingface_hub into CheckpointErrors that explain what to do."""
    from huggingface_hub import errors

    at = f" at revision {revision!r}" if revision else ""
    if name.lower() == repository.lower():
        subject = f"{name!r} is not a local folder or file; as a Hugging Face id{at}, it"
    else:
        subject = f"{name!r} is not a local folder or file; it stands for {repository}{at}, which"
    similar = [] if official_name(name) else similar_names(name)
    similar = f". Similar names are {', '.join(map(repr, similar))}" if similar else ""
    try:
        yield
    except errors.GatedRepoError as error:
        why = f"is gated: accept its license at https://huggingface.co/{repository} and log in with `hf auth login`"
        raise CheckpointError(f"{subject} {why}") from error
    except errors.RepositoryNotFoundError as error:
        why = "does not exist or is private: check the name, or log in with `hf auth login`"
        raise CheckpointError(f"{subject} {why}{similar}") from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"{subject} does not exist: check the revision") from error
    except (OSError, ValueError, errors.HTTPError, errors.EntryNotFoundError) as error:
        why = "is not in the local cache and cannot be downloaded. On a machine with network access, run"
        command = f"`hf download {repository} --local-dir FOLDER`, and pass the folder"
        raise CheckpointError(f"{subject} {why} {command} ({type(error).__name__}: {error}){similar}") from error
