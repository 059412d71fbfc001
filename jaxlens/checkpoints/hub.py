"""Downloads checkpoints from Hugging Face."""

import re
from pathlib import Path

from jaxlens.checkpoints.folder_reader import NOT_WEIGHTS
from jaxlens.errors import CheckpointError

FILE_PATTERNS = [
    *("config.json", "generation_config.json", "adapter_config.json"),
    *("model*.safetensors", "model.safetensors.index.json"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.tiktoken"),
    *("spiece.model", "chat_template*"),
]
"""The files of a repository that are downloaded. They contain one copy of the weights."""

PYTORCH_PATTERNS = ["pytorch_model*.bin", "pytorch_model*.bin.index.json", "*.pth", "*.pt"]
"""The files that are downloaded from a repository without safetensors."""


def download(name: str, revision: str | None = None) -> Path:
    """The local folder of a Hugging Face id. Downloads the files that are not in the cache."""
    import huggingface_hub
    from huggingface_hub import errors

    not_local = f"{name!r} is not a local folder or file"
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise CheckpointError(f"{not_local}, and not a Hugging Face id (owner/name); check the path")
    subject = f"{not_local}; as a Hugging Face id{f' at revision {revision!r}' if revision else ''}, it"
    try:
        options = {"revision": revision, "ignore_patterns": ["*/*", *NOT_WEIGHTS]}
        folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=FILE_PATTERNS, **options))
        if any(folder.glob("*.safetensors")):
            return folder
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=PYTORCH_PATTERNS, **options))
    except errors.GatedRepoError as error:
        why = f"is gated: accept its license at https://huggingface.co/{name} and log in with `hf auth login`"
        raise CheckpointError(f"{subject} {why}") from error
    except errors.RepositoryNotFoundError as error:
        why = "does not exist or is private: check the name, or log in with `hf auth login`"
        raise CheckpointError(f"{subject} {why}") from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"{subject} does not exist: check the revision") from error
    except (OSError, ValueError, errors.HTTPError, errors.EntryNotFoundError) as error:
        why = "is not in the local cache and cannot be downloaded. On a machine with network access, run"
        command = f"`hf download {name} --local-dir FOLDER`, and pass the folder"
        raise CheckpointError(f"{subject} {why} {command} ({type(error).__name__}: {error})") from error
