"""Reads tensors stored in MXFP4: four-bit floats in groups of 32 that share a power of two as their scale.

Format: "OCP Microscaling Formats (MX) Specification" 1.0, section 5, in the layout of the published gpt-oss. A tensor
`x [..., row, column]` is stored as `x_blocks [..., column, row / 32, 16]`, two values per byte with the first value in
the lower four bits, and `x_scales [..., column, row / 32]`.
"""

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from jaxlens.checkpoints.rules.rule import Tensors, stored_dtype
from jaxlens.errors import CheckpointError

MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The value of the lower three bits. The fourth bit is the sign."""


def value_pairs() -> np.ndarray:
    """The two values of each byte at each scale: the entry 256 * scale + byte is a uint32 of two bfloat16."""
    values = np.array([*MAGNITUDES, *(-magnitude for magnitude in MAGNITUDES)], np.float32)
    pairs = np.stack([np.tile(values, 16), np.repeat(values, 16)], axis=1)
    scales = np.append(np.ldexp(np.float32(1), np.arange(-127, 128)), np.float32(np.nan))
    with np.errstate(over="ignore"):  # products with the largest scale become infinite
        return (scales[:, None, None] * pairs).astype(ml_dtypes.bfloat16).view(np.uint32).ravel()


VALUE_PAIRS = value_pairs()


class Mxfp4Tensors:
    """The tensors of a checkpoint. Those in MXFP4 appear as bfloat16, and are converted when they are read."""

    def __init__(self, tensors: Tensors):
        self._tensors, names = tensors, set(tensors.names())
        with_blocks = [name.removesuffix("_blocks") for name in tensors.names() if name.endswith("_blocks")]
        self._packed = {name for name in with_blocks if f"{name}_scales" in names and name not in names}
        for name in self._packed:
            self._check(name)

    def names(self) -> list[str]:
        hidden = {f"{name}_{suffix}" for name in self._packed for suffix in ("blocks", "scales")}
        return [*(name for name in self._tensors.names() if name not in hidden), *sorted(self._packed)]

    def dtype(self, name: str) -> str:
        return "BF16" if name in self._packed else stored_dtype(self._tensors, name)

    def shape(self, name: str) -> tuple[int, ...]:
        if name not in self._packed:
            return self._tensors.shape(name)
        *leading, columns, groups = self._tensors.shape(f"{name}_scales")
        return (*leading, 32 * groups, columns)

    def read(self, name: str) -> np.ndarray:
        if name not in self._packed:
            return self._tensors.read(name)
        return unpack(self._tensors.read(f"{name}_blocks"), self._tensors.read(f"{name}_scales"))

    def _check(self, name: str) -> None:
        blocks, scales = (tuple(self._tensors.shape(f"{name}_{suffix}")) for suffix in ("blocks", "scales"))
        dtypes = {stored_dtype(self._tensors, f"{name}_{suffix}") for suffix in ("blocks", "scales")}
        if dtypes != {"U8"} or len(scales) < 2 or blocks != (*scales, 16):
            shapes = f"{name}_blocks has shape {blocks}, {name}_scales has shape {scales}"
            expected = "expected U8 and 16 bytes of blocks per byte of scales (MXFP4)"
            raise CheckpointError(f"{shapes}, and their dtype is {' and '.join(sorted(dtypes))}; {expected}")


def unpack(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The values that `blocks` and `scales` encode, as bfloat16. Only those too large for float32 are not exact.

    Example:
        >>> unpack(np.full((1, 1, 16), 0x2C, np.uint8), np.full((1, 1), 128, np.uint8))[:3].tolist()
        [[-4.0], [2.0], [-4.0]]
    """
    index = (scales.astype(np.uint16) << 8)[..., None] | blocks
    return VALUE_PAIRS[index].view(ml_dtypes.bfloat16).reshape(*scales.shape[:-1], -1).swapaxes(-1, -2)


def is_mxfp4(fields: Mapping[str, Any]) -> bool:
    """Whether a config.json describes a checkpoint with tensors in MXFP4."""
    quantization = fields.get("quantization_config")
    return isinstance(quantization, Mapping) and quantization.get("quant_method") == "mxfp4"
