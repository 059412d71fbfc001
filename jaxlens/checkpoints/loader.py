"""Loads a checkpoint: its config, its parameters and its tokenizer."""

import dataclasses
import math
import os
from typing import Any

import jax

from jaxlens.checkpoints.adapters.factors import adapted_config, factor_parameters
from jaxlens.checkpoints.open import Checkpoint, open_checkpoint, path_in_errors
from jaxlens.checkpoints.parameters import StoredParameters, load_parameters
from jaxlens.checkpoints.rules.rule import FLOATS, moves, stored_dtype
from jaxlens.checkpoints.validate import all_moves
from jaxlens.config import Config
from jaxlens.nn.parameters import Params
from jaxlens.sharding import Sharding


@dataclasses.dataclass(frozen=True, eq=False)
class Loaded:
    """A loaded checkpoint. If `load_lazily` made it, `params` reads each weight on demand.

    `source` is the Hugging Face config.json, which an export needs, or None.
    """

    cfg: Config
    params: Params | StoredParameters
    tokenizer: Any
    name: str
    source: dict[str, Any] | None


def load(
    name_or_path: str | os.PathLike[str], *, dtype: Any = "float32", first_n_layers: int | None = None,
    n_ctx: int | None = None, tokenizer: Any = None, revision: str | None = None, checkpoint_index: int | None = None,
    checkpoint_value: int | None = None, token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None, local_files_only: bool = False,
    adapter: str | os.PathLike[str] | None = None, merge: bool = True, sharding: Sharding | None = None,
) -> Loaded:  # fmt: skip
    """Loads a checkpoint. What can be loaded, and how it is found, is described at `open_checkpoint`.

    Weights are cast to `dtype`, or to that of the largest tensor if `dtype` is None. `first_n_layers` loads only the
    first layers. `n_ctx` changes the context length, which cannot increase in a model with learned positions.
    `tokenizer` replaces the tokenizer of the checkpoint. With a `sharding`, each device of its mesh receives only its
    part of the parameters.

    Raises:
        CheckpointError: The checkpoint cannot be found or read, or contains a field or tensor that jaxlens would
            ignore. The message lists the file, the fields or the tensors.
        ValueError: An argument does not match the checkpoint.
    """
    checkpoint = open_checkpoint(
        name_or_path, revision, checkpoint_index=checkpoint_index, checkpoint_value=checkpoint_value, token=token,
        cache_dir=cache_dir, local_files_only=local_files_only, adapter=adapter, merge=merge,
    )  # fmt: skip
    cfg = _with_dtype(checkpoint, dtype)
    if cfg.dtype == "float64" and not jax.config.jax_enable_x64:
        raise ValueError('dtype float64 needs jax.config.update("jax_enable_x64", True); otherwise JAX uses float32')
    kept = with_n_ctx(cfg if first_n_layers is None else cfg.first_layers(first_n_layers), n_ctx)
    with path_in_errors(checkpoint.name):
        plan, rename = all_moves(checkpoint.family, cfg, checkpoint.tensors)
        adapted = adapted_config(kept, checkpoint.updates, plan) if checkpoint.updates else kept
        shardings = None if sharding is None else sharding.parameters(kept)
        params = load_parameters(
            checkpoint.family, cfg, checkpoint.tensors, cfg.dtype, kept=kept, shardings=shardings
        )  # fmt: skip
        if checkpoint.updates:
            of_kept = list(moves(checkpoint.family.rules(cfg), kept, rename))
            factors = factor_parameters(adapted, checkpoint.updates, of_kept)
            factors = factors if sharding is None else sharding.place(factors, adapted)
            params, kept = params | factors, adapted
    tokenizer = checkpoint.tokenizer() if tokenizer is None else tokenizer
    kept = kept if tokenizer else kept.replace(tokenizer_name=None)  # it could not be loaded, or there is none
    return Loaded(kept, params, tokenizer, checkpoint.name, checkpoint.source)


def load_lazily(
    name_or_path: str | os.PathLike[str], *, dtype: Any = None, revision: str | None = None,
    adapter: str | os.PathLike[str] | None = None,
) -> Loaded:  # fmt: skip
    """Loads a checkpoint without its weights. `params[name][index]` reads them on demand.

    The model can then be written in another format while at most one tensor is in memory. By default, the dtype is
    that of the largest tensor. Errors are those of `load`.
    """
    checkpoint = open_checkpoint(name_or_path, revision, adapter=adapter)
    cfg = _with_dtype(checkpoint, dtype)
    with path_in_errors(checkpoint.name):
        params = StoredParameters(checkpoint.family, cfg, checkpoint.tensors)
    return Loaded(cfg, params, checkpoint.tokenizer(), checkpoint.name, checkpoint.source)


def with_n_ctx(cfg: Config, n_ctx: int | None) -> Config:
    """The config with the given context length, which learned positions bound."""
    learned = cfg.positional_embedding_type in ("standard", "shortformer")
    if n_ctx is not None and learned and n_ctx > cfg.n_ctx:
        raise ValueError(f"n_ctx is {n_ctx}; expected at most {cfg.n_ctx}, the number of learned positions")
    return cfg if n_ctx is None else cfg.replace(n_ctx=n_ctx)


def _with_dtype(checkpoint: Checkpoint, dtype: Any) -> Config:
    """The config with the given dtype, or with the dtype of the largest tensor."""
    tensors = checkpoint.tensors
    if dtype is None:
        largest = max(tensors.names(), key=lambda name: math.prod(tensors.shape(name)), default=None)
        dtype = checkpoint.cfg.dtype if largest is None else FLOATS.get(stored_dtype(tensors, largest), "float32")
    return checkpoint.cfg.replace(dtype=dtype)
