"""Parameters back into the folder that Hugging Face's transformers reads."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlens.config import Config
from jaxlens.convert.checking import check_filled
from jaxlens.convert.files import write_json, write_tensors, written_whole
from jaxlens.convert.loading import StoredParameter
from jaxlens.convert.opening import read_config
from jaxlens.convert.reader import complete, standard_names
from jaxlens.convert.rules import FLOATS, Family, moves
from jaxlens.errors import CheckpointError
from jaxlens.nn.part import sizes

OURS_ALONE = ("dtype", "attn_block", "init_mode", "initializer_range", "default_prepend_bos")
"""Fields of Config that a config.json need not agree with: they are choices of the caller, not of the checkpoint."""


def export(
    folder: str | Path,
    cfg: Config,
    params: Mapping[str, jax.Array | StoredParameter],
    source: Mapping[str, Any] | None,
    *,
    tokenizer: Any = None,
    shard_bytes: int = 5 * 10**9,
) -> Path:
    """Writes a model as config.json and safetensors that `AutoModelForCausalLM.from_pretrained` opens.

    `source` is the config.json that the model came with (`Loaded.source`), or for a model made here the one it is to
    be written with: `{"model_type": "llama", ...}`. The mapping from config.json to Config exists in one direction
    only; what is written is mapped again, and the export is refused unless that gives `cfg`. Tensors have the number
    type of `params`; in the type they were loaded in, they are bit for bit those of the checkpoint.

    Raises:
        CheckpointError: there is no source, or this architecture cannot express the model; nothing is written.
        FileExistsError: `folder` exists and is not empty.
    """
    family, fields = export_config(cfg, source)
    folder = Path(folder)
    with written_whole(folder) as partial:
        write_json(partial / "config.json", fields)
        write_tensors(partial, ExportedTensors(family, cfg, params), shard_bytes)
        if tokenizer is not None:
            tokenizer.save(partial)
    return folder


class ExportedTensors:
    """The tensors that a family makes of parameters, layer by layer, each made when it is asked for.

    They are bit for bit what `load_parameters` read in the same number type.

    Raises:
        CheckpointError: `params` are not those of a model of `cfg`.
    """

    def __init__(self, family: Family, cfg: Config, params: Mapping[str, jax.Array | StoredParameter]):
        self._params, self._lengths = params, sizes(cfg)
        plan = sorted(moves(family.rules(cfg), cfg), key=lambda move: -1 if move.layer is None else move.layer)
        check_filled(plan, {name: np.shape(value) for name, value in params.items()}, self._lengths)
        self._moves, self._constants = {move.theirs: move for move in plan}, family.constants(cfg)

    def names(self) -> list[str]:
        return [*self._moves, *self._constants]

    def shape(self, name: str) -> tuple[int, ...]:
        return () if name in self._constants else self._moves[name].rule.their_shape(self._lengths)

    def dtype(self, name: str) -> str:
        stored = {ours: theirs for theirs, ours in FLOATS.items()}
        return stored[str(self._number_type(name))]

    def read(self, name: str) -> np.ndarray:
        if name in self._constants:
            return np.asarray(self._constants[name], self._number_type(name))
        move = self._moves[name]
        wholes = (self._params[ours] for ours in move.ours)
        parts = [(one if isinstance(one, StoredParameter) else np.asarray(one))[move.index] for one in wholes]
        return move.rule.export(parts, self._lengths)

    def _number_type(self, name: str) -> np.dtype:
        """That of the parameter which a tensor is made of; a constant has that of any."""
        return self._params[self._moves[name].ours[0] if name in self._moves else next(iter(self._params))].dtype


def export_config(cfg: Config, source: Mapping[str, Any] | None) -> tuple[Family, dict[str, Any]]:
    """The config.json of an export: `source` with the layers, context, number type and (un)tied embeddings of `cfg`."""
    if source is None:
        raise CheckpointError(
            "this model has no Hugging Face config to be written with; pass the config.json of its architecture as "
            'source, e.g. source={"model_type": "llama", "hidden_size": ...}'
        )
    family, whole = read_config(source)
    fields = dict(source)
    if cfg.n_ctx != whole.n_ctx:
        fields |= _renamed(source, **{family.context: cfg.n_ctx})
    if cfg.n_layers != whole.n_layers:
        per_layer = {
            name: value[: cfg.n_layers]
            for name, value in complete(source).items()
            if "layer" in name and isinstance(value, list) and len(value) == whole.n_layers
        }
        fields |= _renamed(source, num_hidden_layers=cfg.n_layers) | per_layer
    if cfg.tie_word_embeddings != whole.tie_word_embeddings:  # processing took them apart
        fields |= _renamed(source, tie_word_embeddings=cfg.tie_word_embeddings)
    fields |= {"torch_dtype" if "torch_dtype" in fields else "dtype": cfg.dtype}
    family, back = read_config(fields)
    compared = [field.name for field in dataclasses.fields(Config) if field.name not in OURS_ALONE]
    if different := [name for name in compared if getattr(cfg, name) != getattr(back, name)]:
        listed = ", ".join(f"{name} is {getattr(cfg, name)!r}, there {getattr(back, name)!r}" for name in different)
        because = "".join(f". {name} {did}" for name, did in _processing(cfg, back).items())
        raise CheckpointError(f"a {source['model_type']} checkpoint cannot express this model: {listed}{because}")
    return family, fields


def _processing(cfg: Config, unprocessed: Config) -> dict[str, str]:
    """The passes of weight processing that tell one Config from the other, and what they did."""
    instead = "export the model that from_pretrained_no_processing gives, or leave this pass out"
    passes = {}
    if cfg.normalization_type == f"{unprocessed.normalization_type}Pre":
        passes["fold_ln"] = f"has put the weights of norms into those that follow: {instead}"
    if "b_O" in set(cfg.biases) - set(unprocessed.biases):
        passes["fold_value_biases"] = f"has made b_O: {instead}"
    return passes


def _renamed(source: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    """Fields under the names that the class of `source` has for them."""
    names = standard_names(source["model_type"])
    return {names.get(name, name): value for name, value in fields.items()}
