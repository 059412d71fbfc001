"""Checkpoints by their Hugging Face id."""

import re
from pathlib import Path

from jaxlens.errors import CheckpointError

WANTED = [
    *("config.json", "generation_config.json", "adapter_config.json"),
    *("model*.safetensors", "model.safetensors.index.json"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.tiktoken"),
    *("spiece.model", "chat_template*"),
]
"""The files of a repository that are downloaded: one copy of the weights, and no pickles."""


def download(name: str, revision: str | None = None) -> Path:
    """The local folder of a Hugging Face id, downloaded unless it is in the cache.

    Raises:
        CheckpointError: what was asked for cannot be had, why, and what to do.
    """
    import huggingface_hub
    from huggingface_hub import errors

    asked = f"{name!r} is no local folder or file"
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise CheckpointError(f"{asked}, and no Hugging Face id either (owner/name); check the path")
    what = f"{asked}, and as a Hugging Face id{f' at revision {revision!r}' if revision else ''}"
    try:
        return Path(
            huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=WANTED, ignore_patterns=["*/*"])
        )
    except errors.GatedRepoError as error:
        why = f"it is gated: accept its licence at https://huggingface.co/{name} and log in with `hf auth login`"
        raise CheckpointError(f"{what} {why}") from error
    except errors.RepositoryNotFoundError as error:
        why = "it does not exist or is private: check the name, or log in with `hf auth login`"
        raise CheckpointError(f"{what} {why}") from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"{what} it does not exist: check the revision's name") from error
    except (OSError, ValueError, errors.HTTPError, errors.EntryNotFoundError) as error:
        why = (
            "it is not in the local cache and cannot be downloaded from here. Where there is a network, run "
            f"`hf download {name} --local-dir FOLDER`, and give that folder instead"
        )
        raise CheckpointError(f"{what} {why} ({type(error).__name__}: {error})") from error
