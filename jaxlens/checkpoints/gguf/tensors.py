"""Reads the tensors of GGUF files, dequantized, some rows at a time."""

import math
from pathlib import Path

import numpy as np

from jaxlens.checkpoints.gguf.header import TensorInfo
from jaxlens.errors import CheckpointError

TYPES = (
    *("F64", "F32", "F16", "BF16"),
    *("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"),
    *("Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K"),
    *("IQ4_NL", "IQ4_XS", "IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S"),
    *("TQ2_0", "TQ1_0", "MXFP4", "NVFP4"),
)
"""The types of tensors that can be read: floating point, and the quantized types that the package gguf dequantizes.

Names such as Q4_K_M, of files and not of tensors, stand for a mixture of these types.
"""

CHUNK = 2**18
"""The number of values that are dequantized at a time. The package gguf needs several arrays of this size."""


def read(path: Path, name: str, info: TensorInfo, entry: int | None = None) -> np.ndarray:
    """A tensor as a new float32 array. With `entry`, only this entry of the first axis is read."""
    from gguf import GGML_QUANT_SIZES

    if info.kind.name not in TYPES:
        raise CheckpointError(f"{path}: {name} has type {info.kind.name}; expected one of {', '.join(TYPES)}")
    shape, start = info.shape, info.start
    if entry is not None:
        shape, start = shape[1:], start + entry * (info.size // shape[0])
    block, block_size = GGML_QUANT_SIZES[info.kind]
    value, blocks = np.empty(shape, np.float32), math.prod(shape) // block
    flat, step = value.reshape(-1), max(CHUNK // block, 1)
    with path.open("rb") as file:
        file.seek(start)
        for first in range(0, blocks, step):
            count = min(step, blocks - first)
            data = np.frombuffer(file.read(count * block_size), np.uint8)
            if data.size < count * block_size:
                raise CheckpointError(f"{path} was shortened after it was opened; {name} is incomplete")
            flat[first * block : (first + count) * block] = _dequantized(data, info.kind)
    return value


def _dequantized(data: np.ndarray, kind: object) -> np.ndarray:
    """The values of some blocks. The package gguf would process a matrix in groups of 16 rows, so it gets one row."""
    from gguf import GGMLQuantizationType as Kind
    from gguf import dequantize

    if kind == Kind.BF16:
        return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)
    if kind in (Kind.F64, Kind.F32, Kind.F16):
        return data.view({Kind.F64: "<f8", Kind.F32: "<f4", Kind.F16: "<f2"}[kind])
    return dequantize(data[None], kind)[0]
