"""Finds and reads the tokenizer files of a Hugging Face folder or id."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from jaxlens.errors import CheckpointError

ROLES = ("bos", "eos", "pad", "unk")
"""The special tokens that a `Tokenizer` stores."""

POLICY = ("padding_side", "default_prepend_bos", "model_max_length")
"""The settings of tokenizer_config.json that a `Tokenizer` takes as they are."""

FILE_PATTERNS = [
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.tiktoken"),
    *("spiece.model", "chat_template*", "config.json"),
]
"""The files of a repository that a tokenizer is read from."""


def find_folder(name: str, revision: str | None = None, **hub: Any) -> Path:
    """The folder `name`, or a folder with the tokenizer files of a Hugging Face id, which are downloaded."""
    import huggingface_hub
    from huggingface_hub import errors

    if (path := Path(name).expanduser()).is_dir():
        return path
    try:
        patterns = {"allow_patterns": FILE_PATTERNS, "ignore_patterns": ["*/*"]}
        return Path(huggingface_hub.snapshot_download(name, revision=revision, **patterns, **hub))
    except (OSError, ValueError, errors.HTTPError, errors.EntryNotFoundError) as error:
        problem = f"the tokenizer {name!r} is not a local folder, and cannot be downloaded as a Hugging Face id"
        raise CheckpointError(f"{problem}; check the name, or pass tokenizer= ({type(error).__name__})") from error


def read_folder(folder: Path) -> dict[str, Any]:
    """The arguments of `Tokenizer` for the tokenizer in a folder."""
    settings = read_json(folder / "tokenizer_config.json")
    policy = {name: settings[name] for name in POLICY if name in settings}
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; expected the folder that contains tokenizer.json")
    if not (folder / "tokenizer.json").is_file():
        return {"backend": _auto_tokenizer(folder), **policy}
    try:
        backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the Rust library raises bare Exception
        raise CheckpointError(f"{folder / 'tokenizer.json'} cannot be read: {error}") from error
    listed = read_json(folder / "special_tokens_map.json") | settings
    special = _special_tokens(folder, listed, backend)
    _add_tokens(folder, settings.get("added_tokens_decoder"), backend)
    _add_special_tokens(folder, special | listed, backend)
    backend.encode_special_tokens = settings.get("split_special_tokens") is True
    return {"backend": backend, **special, **policy, "chat_template": _chat_template(folder, settings)}


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, or an empty dict if the file does not exist."""
    try:
        return dict(json.loads(path.read_text("utf-8"))) if path.is_file() else {}
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} does not contain a JSON object: {error}") from error


def _special_tokens(folder: Path, listed: Mapping[str, Any], backend: tokenizers.Tokenizer) -> dict[str, str | None]:
    """The special tokens by role. A role with the value null has no token. A missing role is read from config.json."""
    config = read_json(folder / "config.json")
    special = {}
    for role in (f"{role}_token" for role in ROLES):
        token, index = listed.get(role), config.get(f"{role}_id")
        index = index[0] if isinstance(index, list) and index else index  # some models have several EOS tokens
        token = backend.id_to_token(index) if role not in listed and index is not None else token
        special[role] = None if token is None else _added_token(folder, token).content
    return special


def _add_tokens(folder: Path, decoder: Mapping[str, Any] | None, backend: tokenizers.Tokenizer) -> None:
    """Adds tokens that only tokenizer_config.json or added_tokens.json lists, as transformers does.

    The ids must agree with those of tokenizer.json.
    """
    older = {str(index): text for text, index in read_json(folder / "added_tokens.json").items()}
    file = "tokenizer_config.json" if decoder else "added_tokens.json"
    for index, listed in sorted((decoder or older).items(), key=lambda item: int(item[0])):
        token = _added_token(folder, listed, is_special=False)
        if backend.token_to_id(token.content) is None:
            backend.add_tokens([token])
        if (actual := backend.token_to_id(token.content)) != int(index):
            ids = f"id {index} in {file} and id {actual} in tokenizer.json"
            raise CheckpointError(f"{folder}: token {token.content!r} has {ids}; download both files again")


def _add_special_tokens(folder: Path, listed: Mapping[str, Any], backend: tokenizers.Tokenizer) -> None:
    """Adds special tokens that tokenizer.json does not contain as such, in the order in which transformers does."""
    more = listed.get("extra_special_tokens") or listed.get("additional_special_tokens") or ()
    roles = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
    tokens = [listed.get(f"{role}_token") for role in roles]
    for token in (*tokens, *(more.values() if isinstance(more, Mapping) else more)):
        known = {known.content for known in backend.get_added_tokens_decoder().values()}
        if token is not None and (added := _added_token(folder, token)).content not in known:
            backend.add_special_tokens([added])


def _added_token(folder: Path, token: Any, is_special: bool = True) -> tokenizers.AddedToken:
    """A token in a tokenizer's JSON files: its text, or an object with its text and its options."""
    plain = {"content": token, "normalized": not is_special}
    options = {"special": is_special, **(token if isinstance(token, Mapping) else plain)}
    if not isinstance(options.get("content"), str):
        raise CheckpointError(f'{folder}: a token of the tokenizer is {token!r}; expected a text, or its "content"')
    return tokenizers.AddedToken(**{name: value for name, value in options.items() if name != "__type"})


def _chat_template(folder: Path, settings: Mapping[str, Any]) -> str | dict[str, str] | None:
    file, template = folder / "chat_template.jinja", settings.get("chat_template")
    if file.is_file():
        return file.read_text("utf-8")
    return {item["name"]: item["template"] for item in template} if isinstance(template, list) else template


def _auto_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # transformers raises OSError, ValueError, ImportError and more
        raise CheckpointError(f"{folder} has no tokenizer.json and no other tokenizer: {error}") from error
