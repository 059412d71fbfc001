"""The fields that transformers adds to a config.json, kept on disk: importing transformers takes seconds.

They are kept in `jaxlens/configs` in the cache folder of the user, in a file for each config.json and each version of
transformers.
"""

import copy
import functools
import hashlib
import importlib.metadata
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxlens._jax import user_cache
from jaxlens.errors import CheckpointError

Fields = dict[str, Any]


def _kept_on_disk(function: Callable[[Fields], Any]) -> Callable[[Fields], Any]:
    """A function of JSON values that runs once for each argument. Errors are not kept."""

    @functools.wraps(function)
    def run(fields: Fields) -> Any:
        key = json.dumps([function.__name__, _version(), fields], sort_keys=True)
        file = user_cache() / "configs" / f"{hashlib.sha256(key.encode()).hexdigest()}.json"
        try:
            return json.loads(file.read_text())
        except (OSError, ValueError):
            text = json.dumps(function(fields))
        _write(file, text)
        return json.loads(text)

    return run


@functools.cache
def _version() -> str:
    """The version of transformers. Reading it takes milliseconds."""
    return importlib.metadata.version("transformers")


def _write(file: Path, text: str) -> None:
    """Writes the file at once, so that no other process reads half of it. Does nothing if the folder is read-only."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as written:
            written.write(text)
        os.replace(written.name, file)
    except OSError:
        pass


@_kept_on_disk
def completed(fields: Fields) -> tuple[Fields, dict[str, str]] | None:
    """The fields with the defaults of transformers' config class, and the `attribute_map` of the class: its standard
    names of fields, such as {"hidden_size": "n_embd"} for GPT-2. None if transformers does not support the model_type.
    """
    from huggingface_hub.errors import StrictDataclassError

    classes = _config_classes()
    if fields.get("model_type") not in classes:
        return None
    config_class = classes[fields["model_type"]]
    copied = copy.deepcopy(fields)  # from_dict modifies its argument
    try:
        return config_class.from_dict(copied).to_dict(), dict(config_class.attribute_map)
    except (StrictDataclassError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"config.json: transformers' {config_class.__name__} rejects it: {error}") from error


@_kept_on_disk
def causal_model(fields: Fields) -> list[str]:
    """The `architectures` of a language model with this model_type, for example ["LlamaForCausalLM"]."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(fields["model_type"])
    return [name] if isinstance(name, str) else []


@functools.cache
def standard_names(model_type: str) -> Mapping[str, str]:
    """The `attribute_map` of transformers' config class, for example {"hidden_size": "n_embd", ...} for GPT-2."""
    classes = _config_classes()
    return classes[model_type].attribute_map if model_type in classes else {}


def _config_classes() -> Mapping[str, Any]:
    """transformers' config classes by model_type, imported without the advice to install torch."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING
