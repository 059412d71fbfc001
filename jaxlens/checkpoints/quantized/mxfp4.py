"""Reads tensors stored in MXFP4: four-bit floats in groups of 32 that share a power of two as their scale.

Format: "OCP Microscaling Formats (MX) Specification" 1.0, section 5, in the layout of the published gpt-oss. A tensor
`x [..., row, column]` is stored as `x_blocks [..., column, row / 32, 16]`, two values per byte with the first value in
the lower four bits, and `x_scales [..., column, row / 32]`.
"""

from collections.abc import Mapping

import ml_dtypes
import numpy as np

from jaxlens.checkpoints.quantized.packed import Method, Packed, Parts, stems
from jaxlens.checkpoints.rules.hf_config import Reader
from jaxlens.checkpoints.rules.rule import Tensors

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


def unpack(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The values that `blocks` and `scales` encode, as bfloat16. Only those too large for float32 are not exact.

    Example:
        >>> unpack(np.full((1, 1, 16), 0x2C, np.uint8), np.full((1, 1), 128, np.uint8))[:3].tolist()
        [[-4.0], [2.0], [-4.0]]
    """
    index = (scales.astype(np.uint16) << 8)[..., None] | blocks
    return VALUE_PAIRS[index].view(ml_dtypes.bfloat16).reshape(*scales.shape[:-1], -1).swapaxes(-1, -2)


def settings(hf: Reader) -> None:
    """MXFP4 has no settings."""


def packed(tensors: Tensors, _: None) -> Mapping[str, Packed]:
    """Every tensor in MXFP4, by its name."""
    names = set(tensors.names())
    found = {stem: Parts(tensors, names, stem, ("_blocks", "_scales")) for stem in stems(tensors, "_blocks")}
    return {stem: _packed(parts) for stem, parts in found.items()}


def _packed(parts: Parts) -> Packed:
    *leading, columns, groups = scales = parts.shape("_scales") if len(parts.shape("_scales")) > 1 else (0, 0)
    parts.expect("_blocks", ["U8"], (*scales, 16))
    parts.expect("_scales", ["U8"], scales)

    def read() -> np.ndarray:
        return unpack(parts.read("_blocks"), parts.read("_scales"))

    return Packed(parts.names, (*leading, 32 * groups, columns), "BF16", "4-bit floats in groups of 32", read)


MXFP4 = Method(
    "MXFP4", settings, packed, ("_blocks", "_scales"), unused=("quant_method", "modules_to_not_convert", "dequantize")
)
