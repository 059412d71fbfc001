"""TransformerLens's toy models: a config.json of a training run, and a file with the weights of each checkpoint.

    config.json                         the fields of `rules/toy_config.py`, and settings of the training run
    …final.pth                          the weights after training
    checkpoints/…_<value>.pth           the weights after <value> steps or tokens

The weights have TransformerLens's names, as in jaxlens's native format, or earlier forms of them. A file may also be
in safetensors. config.json has no `model_type`, so `as_checkpoint` adds the fields that the other formats have.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxlens.checkpoints.published.training import FILE
from jaxlens.checkpoints.rules.rule import Tensors, stored_dtype
from jaxlens.checkpoints.safetensors_reader import SafetensorsFile
from jaxlens.checkpoints.torch_files.file import TorchFile
from jaxlens.config import BIASES
from jaxlens.errors import CheckpointError

OWNERS = ("NeelNanda/", "ArthurConmy/", "Baidicoot/")
"""The owners of the repositories with toy models."""

CONFIG = ("config.json", "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json")
FINAL = ("*final.safetensors", "*final.pth")
ANY = ("*.safetensors", "*.pth")
SIZES = {"n_layers", "d_model", "n_heads", "d_head", "d_vocab", "n_ctx"}


def is_toy(fields: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a toy model."""
    return "model_type" not in fields and fields.keys() >= SIZES


def weights_file(folder: Path, value: int | None) -> Path:
    """The file with the weights after training, or with those of the training checkpoint with this value."""
    if value is None:
        patterns = FINAL if any(any(folder.glob(pattern)) for pattern in FINAL) else ANY
        files = [file for pattern in patterns for file in sorted(folder.glob(pattern))]
    else:
        names = ((file, FILE.fullmatch(f"checkpoints/{file.name}")) for file in sorted(folder.glob("checkpoints/*")))
        files = sorted((file for file, match in names if match and int(match[1]) == value), key=lambda f: f.suffix)
        files = files[::-1]  # safetensors first
    if not files:
        expected = "…final.pth" if value is None else f"checkpoints/…_{value}.pth"
        raise CheckpointError(f"{folder} contains no weights; expected {expected}. Download the folder again")
    if len({file.with_suffix("") for file in files}) > 1:
        names = ", ".join(file.name for file in files)
        raise CheckpointError(f"{folder} contains {names}; expected one file with weights. Remove the others")
    return files[0]


def open_weights(file: Path) -> Tensors:
    """The tensors of a file with weights."""
    return SafetensorsFile(file) if file.suffix == ".safetensors" else TorchFile(file)


def files_of(folder: Path) -> list[str]:
    """The names of the files of a folder and of its subfolder with training checkpoints."""
    return [file.relative_to(folder).as_posix() for pattern in ("*", "checkpoints/*") for file in folder.glob(pattern)]


def architecture(fields: Mapping[str, Any], names: Iterable[str], tensors: Tensors | None = None) -> str:
    """The model_type of a toy model: "neel", "mingpt", or "neel-solu-old" for models trained on the Pile.

    `names` are those of the model and its folders. As in TransformerLens, names of models trained on the Pile end in
    "_old". If such a model has another name, the names and shapes of its tensors show its layout.
    """
    if isinstance(kind := fields.get("architecture"), str):
        return kind
    stored = set() if tensors is None else set(tensors.names())
    shape = tensors.shape("embed.W_E") if "embed.W_E" in stored else ()
    transposed = shape == (fields["d_model"], fields["d_vocab"]) and fields["d_model"] != fields["d_vocab"]
    old = transposed or any(name.endswith("_old") for name in names) or any("norm" in name for name in stored)
    return "neel-solu-old" if old else "neel"


def as_checkpoint(fields: Mapping[str, Any], kind: str, tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """The config.json of a toy model with the fields that other formats have, and its tensors by their current names.

    `kind` is its `architecture`. If config.json says that norms have weights and there are none, the norms have none.
    A bias that is not stored is zero in TransformerLens, and the model has no such bias here.
    """
    if kind == "mingpt":
        return {**fields, "model_type": kind, "biases": [bias for bias in BIASES if bias != "b_U"]}, tensors
    if kind == "neel-solu-old":
        tensors = Renamed(tensors)
    stored = [name.rpartition(".")[::2] for name in tensors.names()]
    norms = {name for module, name in stored if module.rpartition(".")[2].startswith("ln")}
    biases = {name for _, name in stored if name in BIASES} | ({"norm"} if "b" in norms else set())
    added = {"model_type": kind, "biases": [bias for bias in BIASES if bias in biases]}
    if not norms and "LN" in (fields.get("normalization"), fields.get("normalization_type")):
        added["normalization"] = "LNPre"
    return {**fields, **added}, tensors


def _current_name(name: str) -> str:
    """The current name of a tensor: ln_final.w for norm.w, blocks.0.ln1.w for blocks.0.norm1.w."""
    name = name.replace("norm", "ln")
    return "ln_final." + name.removeprefix("ln.") if name.startswith("ln.") else name


class Renamed:
    """Tensors under their current names. A tensor whose current name another tensor has keeps its name."""

    def __init__(self, tensors: Tensors):
        names = set(tensors.names())
        current = {name: _current_name(name) for name in tensors.names()}
        self._tensors = tensors
        self._stored = {name if new in names else new: name for name, new in current.items()}

    def names(self) -> list[str]:
        return list(self._stored)

    def dtype(self, name: str) -> str:
        return stored_dtype(self._tensors, self._stored[name])

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors.shape(self._stored[name])

    def read(self, name: str) -> np.ndarray:
        return self._tensors.read(self._stored[name])
