"""Checkpoints into parameters and back: Hugging Face folders and ids, GGUF files, jaxlens's own folders.

Example:
    loaded = load("path/to/folder")  # the config, the parameters, the tokenizer, and the config.json it came with
    export("new/folder", loaded.cfg, loaded.params, loaded.source)
"""

import dataclasses
import math
import os
from typing import Any

import jax

from jaxlens.config import Config
from jaxlens.convert.exporting import export
from jaxlens.convert.families import all_families
from jaxlens.convert.loading import StoredParameters, load_parameters
from jaxlens.convert.opening import Checkpoint, naming, open_checkpoint
from jaxlens.convert.rules import FLOATS, Family, Rule, stored_type
from jaxlens.parameters import Params

__all__ = ["Checkpoint", "Family", "Loaded", "Rule", "all_families", "export", "load", "load_lazily", "open_checkpoint"]


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A checkpoint in memory, or all of it but its weights.

    `source` is its config.json in Hugging Face's terms, which an export needs; None where it never had one.
    """

    cfg: Config
    params: Params | StoredParameters
    tokenizer: Any
    name: str
    source: dict[str, Any] | None


def load(
    name_or_path: str | os.PathLike[str],
    *,
    dtype: Any = "float32",
    first_n_layers: int | None = None,
    n_ctx: int | None = None,
    tokenizer: Any = None,
    revision: str | None = None,
) -> Loaded:
    """Loads a folder (of Hugging Face or of jaxlens), a `.gguf` file, "smollm2-135m-instruct" or a Hugging Face id.

    Weights are cast to `dtype` while they are read; None keeps the number type of the largest tensor.
    `first_n_layers` leaves out the layers after those. `n_ctx` lowers or raises the longest sequence; a model with
    learned positions has no more than it was trained with. `tokenizer` replaces the checkpoint's own.

    Raises:
        CheckpointError: the checkpoint cannot be found, read or understood, or something in it would be ignored; the
            message names the file, field or tensors.
        ValueError: an argument does not suit the checkpoint.
    """
    checkpoint = open_checkpoint(name_or_path, revision)
    cfg = _with_dtype(checkpoint, dtype)
    if cfg.dtype == "float64" and not jax.config.jax_enable_x64:
        raise ValueError('dtype float64 needs jax.config.update("jax_enable_x64", True); JAX would make it float32')
    kept = _with_n_ctx(cfg if first_n_layers is None else cfg.first_layers(first_n_layers), n_ctx)
    with naming(checkpoint.name):
        params = load_parameters(checkpoint.family, cfg, checkpoint.tensors, cfg.dtype, kept=kept)
    own = checkpoint.tokenizer() if tokenizer is None else tokenizer
    return Loaded(kept, params, own, checkpoint.name, checkpoint.source)


def load_lazily(name_or_path: str | os.PathLike[str], *, dtype: Any = None, revision: str | None = None) -> Loaded:
    """What `load` loads, but for the weights, which `params[name][index]` reads when they are asked for.

    Writing such a model somewhere else takes memory for one tensor. By default the number type is kept.

    Raises:
        CheckpointError: as `load`.
    """
    checkpoint = open_checkpoint(name_or_path, revision)
    cfg = _with_dtype(checkpoint, dtype)
    with naming(checkpoint.name):
        params = StoredParameters(checkpoint.family, cfg, checkpoint.tensors)
    return Loaded(cfg, params, checkpoint.tokenizer(), checkpoint.name, checkpoint.source)


def _with_n_ctx(cfg: Config, n_ctx: int | None) -> Config:
    learned = cfg.positional_embedding_type in ("standard", "shortformer")
    if n_ctx is not None and learned and n_ctx > cfg.n_ctx:
        raise ValueError(f"n_ctx is {n_ctx}, but the checkpoint has learned {cfg.n_ctx} positions; ask for no more")
    return cfg if n_ctx is None else cfg.replace(n_ctx=n_ctx)


def _with_dtype(checkpoint: Checkpoint, dtype: Any) -> Config:
    """The config with this number type, or with that of the largest tensor."""
    tensors = checkpoint.tensors
    if dtype is None:
        largest = max(tensors.names(), key=lambda name: math.prod(tensors.shape(name)), default=None)
        dtype = checkpoint.cfg.dtype if largest is None else FLOATS.get(stored_type(tensors, largest), "float32")
    return checkpoint.cfg.replace(dtype=dtype)
