"""The tensors of a quantized checkpoint under the names and with the shapes that they have without quantization."""

import dataclasses
import fnmatch
from collections import Counter
from collections.abc import Iterable

import numpy as np

from jaxlens.checkpoints import arrays
from jaxlens.checkpoints.arrays import Rows
from jaxlens.checkpoints.quantized.methods import Quantization
from jaxlens.checkpoints.rules.rule import Tensors, stored_dtype
from jaxlens.checkpoints.validate import shortened
from jaxlens.errors import CheckpointError

SIGNS = (".qweight", ".SCB", ".weight_packed", ".weight_scale_inv", ".quant_map")
"""Suffixes of names that only tensors of a quantized checkpoint have."""


def dequantized(tensors: Tensors, quantization: Quantization | None, input_first: Iterable[str] = ()) -> Tensors:
    """The tensors with quantized weights as floats. Without a quantization, the same tensors.

    Raises a CheckpointError if weights are quantized, but no quantization is described, and as `DequantizedTensors`.
    """
    if quantization is not None:
        return DequantizedTensors(tensors, quantization, input_first)
    if sign := next((name for name in tensors.names() if name.endswith(SIGNS)), None):
        problem = f"{sign} is part of a quantized weight, but config.json has no quantization_config"
        raise CheckpointError(f"{problem}; copy it from the config.json of the model on Hugging Face")
    return tensors


class DequantizedTensors:
    """The tensors of a checkpoint. Its quantized weights appear as floats, and are dequantized when they are read.

    Which weights are quantized follows from the names and dtypes of the tensors. `input_first` are the weights, as glob
    patterns, whose first axis without quantization is the input (`Family.input_first`).

    Raises a CheckpointError if a part of a weight is missing, does not match the others, or belongs to no weight.
    """

    def __init__(self, tensors: Tensors, quantization: Quantization, input_first: Iterable[str] = ()):
        method, names = quantization.method, list(tensors.names())
        self._tensors, self._title, self._input_first = tensors, method.title, tuple(input_first)
        self._model_dtype = quantization.dtype
        self._packed = dict(method.packed(tensors, quantization.settings))
        parts = {part for weight in self._packed.values() for part in weight.parts}
        if both := sorted((self._packed.keys() & names) - parts):
            twice = f"is stored twice, quantized with {method.title} and not"
            raise CheckpointError(f"{both[0]} {twice}; remove one of the two")
        self._kept = [name for name in names if name not in parts and not _matches(name, method.activations)]
        if leftover := [name for name in self._kept if name.endswith(method.companions)]:
            belongs = f"belongs to no weight quantized with {method.title}, as config.json describes"
            raise CheckpointError(f"{shortened(leftover)} {belongs}; remove it, or correct config.json")
        if not self._packed:
            remedy = "remove quantization_config from config.json if the weights are not quantized"
            raise CheckpointError(f"config.json describes {method.title}, but no weight is stored so; {remedy}")

    @property
    def description(self) -> str:
        """In words: the method, and how many weights are stored in which way."""
        kinds = Counter(weight.kind for weight in self._packed.values())
        return f"{self._title}: " + ", ".join(f"{count} as {kind}" for kind, count in kinds.most_common())

    @property
    def optional_zeros(self) -> set[str]:
        """Biases of quantized weights, which older versions of AutoGPTQ added to layers without a bias."""
        biases = {f"{name.removesuffix('weight')}bias" for name in self._packed if name.endswith(".weight")}
        return biases & set(self._kept)

    def names(self) -> list[str]:
        return [*self._kept, *self._packed]

    def dtype(self, name: str) -> str:
        """The stored dtype. That of float32 values of a quantized weight is the dtype that config.json states."""
        if name not in self._packed:
            return stored_dtype(self._tensors, name)
        dtype = self._packed[name].dtype
        return self._model_dtype if dtype == "F32" else dtype

    def shape(self, name: str) -> tuple[int, ...]:
        if name not in self._packed:
            return tuple(self._tensors.shape(name))
        shape = self._packed[name].shape
        return shape[::-1] if _matches(name, self._input_first) else shape

    def open(self, name: str) -> np.ndarray | Rows:
        """A tensor, perhaps to be computed in parts. Quantized weights may have a wider dtype than `dtype(name)`."""
        if name not in self._packed:
            return self._tensors.read(name)
        weight, swapped = self._packed[name], _matches(name, self._input_first)
        with np.errstate(over="ignore", invalid="ignore"):  # as in the library; the caller warns about infinite values
            values = weight.open()
            if isinstance(values, Rows) and len(weight.shape) == 2:
                return dataclasses.replace(values, transposed=values.transposed != swapped)
            values = arrays.whole(values).reshape(weight.shape)
            return values.T if swapped else values

    def read(self, name: str) -> np.ndarray:
        """A tensor. Quantized weights may have a wider dtype than `dtype(name)`, to be rounded once by the caller."""
        return arrays.whole(self.open(name))


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
