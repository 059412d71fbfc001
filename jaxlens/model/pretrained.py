"""Loads the checkpoint of a name, or the weights of a transformers model, for `HookedTransformer.from_pretrained`."""

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxlens.checkpoints import Loaded


def load_pretrained(
    model_name: str, hf_model: Any, *, tokenizer: Any, revision: str | None, training: Mapping[str, int | None],
    hub: Mapping[str, Any], **options: Any,
) -> "Loaded":  # fmt: skip
    """Loads a checkpoint with `jaxlens.checkpoints.load`, or `hf_model` with the tokenizer of `model_name`.

    `training` selects a training checkpoint, and `hub` are the arguments of huggingface_hub.
    """
    from jaxlens.checkpoints import load  # slow to import, and not needed for a model with random weights

    if hf_model is None:
        return load(model_name, tokenizer=tokenizer, revision=revision, **training, **hub, **options)
    if selected := [name for name, value in training.items() if value is not None]:
        raise ValueError(f"{selected[0]} and hf_model are given; expected one of them, because both select weights")

    from jaxlens.checkpoints.hub import tokenizer_named
    from jaxlens.checkpoints.published.names import official_name

    repository = official_name(model_name) or str(model_name)
    tokenizer = tokenizer_named(repository, revision, **hub) if tokenizer is None else tokenizer
    with tempfile.TemporaryDirectory() as folder:
        hf_model.save_pretrained(folder)
        loaded = load(folder, tokenizer=tokenizer, **options)
    cfg = loaded.cfg.replace(model_name=Path(repository).name or repository)
    return dataclasses.replace(loaded, name=model_name, cfg=cfg)
