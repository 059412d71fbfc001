"""Weights of eight-bit floats with a scale per block, row or tensor, as DeepSeek-V3, Qwen3 and others publish them.

Format: "DeepSeek-V3 Technical Report" (arXiv 2412.19437), section 3.3.2, and `weight_dequant` in the code published
with it: a weight is the float8 value times the scale of its block of 128 x 128, and the last blocks may be smaller. In
other checkpoints a scale belongs to a whole tensor (Ministral 3), to a row (fbgemm_fp8), or to 32 columns and is a
power of two (MXFP8).
"""

import functools
from collections.abc import Mapping

import numpy as np

from jaxlens.checkpoints.arrays import Rows
from jaxlens.checkpoints.quantized.packed import (
    Grid,
    Method,
    Packed,
    Parts,
    blocks,
    described,
    grid_shape,
)
from jaxlens.checkpoints.rules.hf_config import Reader
from jaxlens.checkpoints.rules.rule import Tensors, stored_dtype
from jaxlens.errors import CheckpointError

FLOAT8 = ("F8_E4M3", "F8_E5M2")
SCALES = ("weight_scale_inv", "weight_scale", "scale_inv", "scale", "qscale_weight")
"""Names of the scale of `….weight`. It is a factor of the stored value under each of them, `inv` included."""

SCALE_DTYPES = ("F32", "F16", "BF16", "F8_E8M0", "U8")
ACTIVATIONS = (
    "*.activation_scale", "*_activation_scale", "*.input_scale", "*.input_scale_ub", "*.output_scale", "*.qscale_act",
    "*.k_scale", "*.v_scale", "*.q_scale", "*.kv_scale",
)  # fmt: skip


def settings(hf: Reader) -> tuple[int | None, int | None]:
    """The height and width of blocks, if config.json describes blocks."""
    size = hf("weight_block_size", None)
    if size is None:
        return None, None
    is_pair = isinstance(size, list | tuple) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)
    if not is_pair:
        raise hf.refused("weight_block_size", "expected two positive integers or null")
    return size[0], size[1]


def packed(tensors: Tensors, given: tuple[int | None, int | None]) -> Mapping[str, Packed]:
    """Every float8 tensor, with its scale."""
    names = set(tensors.names())
    stored = [name for name in tensors.names() if stored_dtype(tensors, name) in FLOAT8]
    return {name: _packed(tensors, names, name, given) for name in stored}


def _packed(tensors: Tensors, names: set[str], name: str, given: tuple[int | None, int | None]) -> Packed:
    stem, weight = (name.removesuffix("weight"), "weight") if name.endswith(".weight") else (name, "")
    candidates = SCALES if weight else ("_scale_inv", "_scale")
    scales = [scale for scale in candidates if stem + scale in names] or candidates[:1]
    if len(scales) > 1:
        listed = " and ".join(stem + scale for scale in scales)
        raise CheckpointError(f"{name} has two scales, {listed}; expected one")
    parts, (scale,) = Parts(tensors, names, stem, (weight, *scales)), scales
    shape = parts.shape(weight)
    parts.expect(scale, SCALE_DTYPES)
    grid = grid_shape(shape, parts.shape(scale))
    size = grid and blocks(shape, grid, given)
    if not size:
        has = f"{name} has shape {shape}, and its scale {stem}{scale} has shape {parts.shape(scale)}"
        of_size = " of {} x {}".format(*given) if all(given) else ""
        raise CheckpointError(f"{has}; expected one scale, or a scale for each row or each block{of_size}")

    def read() -> Rows:
        values = parts.read(weight).reshape(-1, shape[-1])
        scales = Grid(exponents(parts.read(scale)).reshape(grid), shape, *size)

        def rows(rows: slice, out: np.ndarray) -> None:
            as_float32(values[rows], out)
            scales.apply(np.multiply, out, rows)

        return Rows(values.shape, rows)

    return Packed(parts.names, shape, "F32", f"8-bit floats {described(*size, shape)}", read)


def as_float32(values: np.ndarray, out: np.ndarray) -> None:
    """Writes float8 values to a float32 array. Two values at a time are looked up."""
    stored, flat = values.view(np.uint8).reshape(-1), out.reshape(-1)
    even = stored.size // 2 * 2
    indices, to = stored[:even].view(np.uint16), flat[:even].view(np.uint64)
    np.take(_pairs(values.dtype), indices, out=to, mode="clip")  # other modes copy `out`
    flat[even:] = values.reshape(-1)[even:]


@functools.cache
def _pairs(dtype: np.dtype) -> np.ndarray:
    """The float32 values of each two bytes, as the bytes of one integer."""
    values = np.arange(256, dtype=np.uint8).view(dtype).astype(np.float32)
    return np.stack([np.tile(values, 256), np.repeat(values, 256)], axis=1).view(np.uint64)[:, 0]


def exponents(scales: np.ndarray) -> np.ndarray:
    """Scales as float32. Bytes are the exponents of powers of two, plus 127.

    Example:
        >>> exponents(np.array([126, 127, 130], np.uint8)).tolist()
        [0.5, 1.0, 8.0]
    """
    if scales.dtype == np.uint8:
        return np.ldexp(np.float32(1), scales.astype(np.int32) - 127)
    return scales.astype(np.float32)


def block_settings(hf: Reader) -> tuple[int | None, int | None]:
    """Settings of quant_method fp8, whose experts may not be four-bit floats."""
    hf.expect("expert_dtype", "fp8", because="jaxlens reads no other experts in a checkpoint of FP8")
    return settings(hf)


UNUSED = (
    "quant_method", "activation_scheme", "modules_to_not_convert", "modules_to_convert", "ignored_layers", "dequantize",
    "fmt", "scale_fmt", "kv_cache_scheme", "activation_scale_ub",
)  # fmt: skip

COMPANIONS = ("_scale_inv", ".weight_scale", ".qscale_weight")
FP8 = Method("FP8", block_settings, packed, COMPANIONS, ACTIVATIONS, UNUSED)
FBGEMM = Method("FP8 of FBGEMM", settings, packed, (".weight_scale", "_proj_scale"), ACTIVATIONS, UNUSED)
