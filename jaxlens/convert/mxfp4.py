"""Tensors stored in MXFP4: numbers of four bits, of which every 32 share a power of two.

Format: "OCP Microscaling Formats (MX) Specification" 1.0, section 5; in checkpoints as gpt-oss published it: for a
tensor `x [..., row, column]` there are `x_blocks [..., column, row / 32, 16]`, two numbers to a byte, the lower half
first, and `x_scales [..., column, row / 32]`.
"""

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from jaxlens.convert.rules import Tensors, stored_type
from jaxlens.errors import CheckpointError

MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""What the lower three of the four bits say; the fourth is the sign."""


def products() -> np.ndarray:
    """The two numbers in a byte times a scale, side by side, at 256 * scale + byte: one look-up finds both."""
    numbers = np.array([*MAGNITUDES, *(-number for number in MAGNITUDES)], np.float32)
    pairs = np.stack([np.tile(numbers, 16), np.repeat(numbers, 16)], axis=1)
    scales = np.append(np.ldexp(np.float32(1), np.arange(-127, 128)), np.float32(np.nan))
    with np.errstate(over="ignore"):  # the largest are infinite
        return (scales[:, None, None] * pairs).astype(ml_dtypes.bfloat16).view(np.uint32).ravel()


PRODUCTS = products()


class Mxfp4Tensors:
    """The tensors of a checkpoint, those in MXFP4 as the bfloat16 numbers that they hold, made when they are read.

    Raises:
        CheckpointError: blocks and scales do not fit together.
    """

    def __init__(self, tensors: Tensors):
        self._tensors, names = tensors, set(tensors.names())
        blocks = [name.removesuffix("_blocks") for name in tensors.names() if name.endswith("_blocks")]
        self._packed = {name for name in blocks if f"{name}_scales" in names and name not in names}
        for name in self._packed:
            self._check(name)

    def names(self) -> list[str]:
        parts = {f"{name}_{part}" for name in self._packed for part in ("blocks", "scales")}
        return [*(name for name in self._tensors.names() if name not in parts), *sorted(self._packed)]

    def dtype(self, name: str) -> str:
        return "BF16" if name in self._packed else stored_type(self._tensors, name)

    def shape(self, name: str) -> tuple[int, ...]:
        if name not in self._packed:
            return self._tensors.shape(name)
        *leading, columns, groups = self._tensors.shape(f"{name}_scales")
        return (*leading, 32 * groups, columns)

    def read(self, name: str) -> np.ndarray:
        if name not in self._packed:
            return self._tensors.read(name)
        return unpacked(self._tensors.read(f"{name}_blocks"), self._tensors.read(f"{name}_scales"))

    def _check(self, name: str) -> None:
        blocks, scales = (tuple(self._tensors.shape(f"{name}_{part}")) for part in ("blocks", "scales"))
        types = {stored_type(self._tensors, f"{name}_{part}") for part in ("blocks", "scales")}
        if types != {"U8"} or len(scales) < 2 or blocks != (*scales, 16):
            raise CheckpointError(
                f"{name}_blocks is {blocks} and {name}_scales is {scales}, of {' and '.join(sorted(types))}; MXFP4 has "
                "16 bytes of blocks to each byte of scales"
            )


def unpacked(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The numbers that blocks and scales hold; bfloat16 has every one of them that is not too large for float32.

    Example:
        >>> unpacked(np.full((1, 1, 16), 0x2C, np.uint8), np.full((1, 1), 128, np.uint8))[:3].tolist()
        [[-4.0], [2.0], [-4.0]]
    """
    at = (scales.astype(np.uint16) << 8)[..., None] | blocks
    return PRODUCTS[at].view(ml_dtypes.bfloat16).reshape(*scales.shape[:-1], -1).swapaxes(-1, -2)


def is_mxfp4(fields: Mapping[str, Any]) -> bool:
    """Whether a config.json says that some of its tensors are stored so."""
    quantization = fields.get("quantization_config")
    return isinstance(quantization, Mapping) and quantization.get("quant_method") == "mxfp4"
