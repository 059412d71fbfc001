"""Writes parameters as a folder for Hugging Face's transformers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlens.checkpoints.folder_writer import atomic_folder, write_generation_config, write_json, write_tensors
from jaxlens.checkpoints.open import read_config
from jaxlens.checkpoints.parameters import StoredParameter
from jaxlens.checkpoints.quantized.methods import without_quantization
from jaxlens.checkpoints.rules.completion import standard_names
from jaxlens.checkpoints.rules.hf_config import complete
from jaxlens.checkpoints.rules.rule import FLOATS, Family, moves
from jaxlens.checkpoints.validate import check_coverage
from jaxlens.config import Config
from jaxlens.errors import CheckpointError
from jaxlens.nn.module import axis_lengths

NOT_COMPARED = ("dtype", "attn_block", "init_mode", "initializer_range", "default_prepend_bos")
"""Fields of Config that may differ from those of config.json. The caller chooses them."""


def export(
    folder: str | Path, cfg: Config, params: Mapping[str, jax.Array | StoredParameter],
    source: Mapping[str, Any] | None, *, tokenizer: Any = None, shard_bytes: int = 5 * 10**9,
) -> Path:  # fmt: skip
    """Writes a model as config.json and safetensors for `AutoModelForCausalLM.from_pretrained`.

    `source` is the Hugging Face config.json of the model (`Loaded.source`). A model made from scratch has none; pass
    the config.json of a model of the same architecture: `{"model_type": "llama", ...}`. The written config.json is
    converted to a Config again, which must equal `cfg`. Tensors have the dtype of `params`. If that is their stored
    dtype, they equal those of the checkpoint bit for bit.

    Raises:
        CheckpointError: `source` is None, or its architecture cannot express the model. Nothing is written.
        FileExistsError: `folder` exists and is not empty.
    """
    family, fields = export_config(cfg, source)
    folder = Path(folder)
    with atomic_folder(folder) as partial:
        write_json(partial / "config.json", fields)
        write_tensors(partial, ExportedTensors(family, cfg, params), shard_bytes)
        write_generation_config(partial, cfg)
        if tokenizer is not None:
            tokenizer.save(partial)
    return folder


class ExportedTensors:
    """The tensors of a checkpoint of a family, ordered by layer. `read` computes a tensor from the parameters.

    A tensor equals, bit for bit, the one that `load_parameters` read in the same dtype. The constructor raises a
    CheckpointError if `params` are not the parameters of a model of `cfg`.
    """

    def __init__(self, family: Family, cfg: Config, params: Mapping[str, jax.Array | StoredParameter]):
        self._params, self._lengths = params, axis_lengths(cfg)
        written = moves(family.rules(cfg), cfg, family.exported())
        plan = sorted(written, key=lambda move: -1 if move.layer is None else move.layer)
        check_coverage(plan, {name: np.shape(value) for name, value in params.items()}, self._lengths)
        self._moves, self._constants = {move.theirs: move for move in plan}, family.constants(cfg)

    def names(self) -> list[str]:
        return [*self._moves, *self._constants]

    def shape(self, name: str) -> tuple[int, ...]:
        return () if name in self._constants else self._moves[name].rule.their_shape(self._lengths)

    def dtype(self, name: str) -> str:
        safetensors_names = {dtype: stored for stored, dtype in FLOATS.items()}
        return safetensors_names[str(self._numpy_dtype(name))]

    def read(self, name: str) -> np.ndarray:
        if name in self._constants:
            return np.asarray(self._constants[name], self._numpy_dtype(name))
        move = self._moves[name]
        params = (self._params[ours] for ours in move.ours)
        values = [(param if isinstance(param, StoredParameter) else np.asarray(param))[move.index] for param in params]
        return move.rule.export(values, self._lengths)

    def _numpy_dtype(self, name: str) -> np.dtype:
        """The dtype of the first parameter of a tensor. For a constant, the dtype of any parameter."""
        return self._params[self._moves[name].ours[0] if name in self._moves else next(iter(self._params))].dtype


def export_config(cfg: Config, source: Mapping[str, Any] | None) -> tuple[Family, dict[str, Any]]:
    """The config.json of an export: `source` with the layers, context length, dtype and tied embeddings of `cfg`."""
    if source is None:
        call = 'source={"model_type": "llama", "hidden_size": ...}'
        remedy = f"pass the config.json of its architecture as source, e.g. {call}"
        raise CheckpointError(f"this model has no Hugging Face config.json; {remedy}")
    family, original = read_config(source)
    fields = without_quantization(source)
    if cfg.n_ctx != original.n_ctx:
        fields |= _named_as_in(source, **{family.context: cfg.n_ctx})
    if cfg.n_layers != original.n_layers:
        per_layer = {
            name: value[: cfg.n_layers]
            for name, value in complete(source).items()
            if "layer" in name and isinstance(value, list) and len(value) == original.n_layers
        }
        fields |= _named_as_in(source, num_hidden_layers=cfg.n_layers) | per_layer
    if cfg.tie_word_embeddings != original.tie_word_embeddings:  # weight processing unties them
        fields |= _named_as_in(source, tie_word_embeddings=cfg.tie_word_embeddings)
    fields |= {"torch_dtype" if "torch_dtype" in fields else "dtype": cfg.dtype}
    family, exported = read_config(fields)
    compared = [name for name in cfg.to_dict() if name not in NOT_COMPARED]
    if different := [name for name in compared if getattr(cfg, name) != getattr(exported, name)]:
        listed = ", ".join(f"{name} is {getattr(cfg, name)!r}, not {getattr(exported, name)!r}" for name in different)
        reasons = "".join(f". {name} {reason}" for name, reason in _processing(cfg, exported).items())
        raise CheckpointError(f"a {source['model_type']} checkpoint cannot express this model: {listed}{reasons}")
    return family, fields


def _processing(cfg: Config, unprocessed: Config) -> dict[str, str]:
    """The passes of weight processing that an export cannot express: their names, and what they changed."""
    instead = "export the model from from_pretrained_no_processing, or leave this pass out"
    passes = {"adapter": "is not merged: export model.merge_adapter()"} if cfg.adapter else {}
    if cfg.normalization_type == f"{unprocessed.normalization_type}Pre":
        passes["fold_ln"] = f"folded the weights of norms into the next layers: {instead}"
    if "b_O" in set(cfg.biases) - set(unprocessed.biases):
        passes["fold_value_biases"] = f"added b_O: {instead}"
    return passes


def _named_as_in(source: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    """Fields in the spelling of `source`: their standard names, or those of its config class, which is the default."""
    names, spelled = standard_names(source["model_type"]), {}
    for name, value in fields.items():
        spellings = (name, names.get(name, name))
        spelled |= {spelling: value for spelling in spellings if spelling in source} or {spellings[1]: value}
    return spelled
