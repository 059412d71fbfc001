"""Weights in the formats of compressed-tensors, which llm-compressor writes.

Formats and arithmetic: `compressors/` and `quantization/lifecycle/forward_helpers.py` in compressed-tensors 0.20. A
weight is (integer or float - zero point) * scale, in the dtype of the scales. Both belong to the tensor, to rows, to
groups of columns or to blocks. The stored `weight` has the dtype int8 or float8, or is `weight_packed` with the shape
`weight_shape`: integers plus half their range, packed along the columns without gaps (before version 0.10, an integer
did not begin in one word and end in the next), or two four-bit floats per byte. NVFP4 divides its scales by
`weight_global_scale`, MXFP4 and MXFP8 store exponents of powers of two.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxlens.checkpoints.arrays import Rows
from jaxlens.checkpoints.quantized.fp8 import ACTIVATIONS, FLOAT8, as_float32, exponents
from jaxlens.checkpoints.quantized.mxfp4 import MAGNITUDES
from jaxlens.checkpoints.quantized.packed import (
    Grid,
    Method,
    Packed,
    Parts,
    Shape,
    blocks,
    described,
    grid_shape,
    inside,
    products_are_normal,
    rounded,
    stems,
    unpack,
)
from jaxlens.checkpoints.rules.hf_config import Reader
from jaxlens.checkpoints.rules.rule import FLOATS, Tensors, stored_dtype
from jaxlens.errors import CheckpointError

FORMATS = (
    "dense", "naive-quantized", "int-quantized", "float-quantized", "pack-quantized", "nvfp4-pack-quantized",
    "mxfp4-pack-quantized", "mxfp8-quantized", "mixed-precision",
)  # fmt: skip
FP4_VALUES = np.array([*MAGNITUDES, *(-magnitude for magnitude in MAGNITUDES)], np.float32)
FP4_PAIRS = FP4_VALUES[np.stack([np.arange(256) & 15, np.arange(256) >> 4], axis=1)].view(np.uint64)[:, 0]
"""The two values of each byte, as the bytes of one integer."""


FLOAT_MAGNITUDES = {"4-bit floats": (0.5, 6), "8-bit floats": (2**-16, 57344)}
"""The least and the largest magnitude of stored floats. That of integers, less a zero point, is 1 and at most 256."""


@dataclasses.dataclass(frozen=True)
class Group:
    """An entry of config_groups: the layers it applies to, and how their weights are quantized."""

    targets: tuple[str, ...]
    bits: int
    height: int | None  # of a block
    width: int | None

    def rank(self, layer: str) -> int:
        """How closely a target matches the name of a layer: 0 by name, 1 by a pattern, 2 by the class of the layer."""
        if any(layer == target or layer.endswith(f".{target}") for target in self.targets):
            return 0
        patterns = (target.removeprefix("re:") for target in self.targets if target.startswith("re:"))
        return 1 if any(re.match(pattern, layer) for pattern in patterns) else 2


def settings(hf: Reader) -> list[Group]:
    """The groups of quantization_config. Raises a CheckpointError if weights are sparse or rotated."""
    because = "jaxlens reads only these formats; save the model without compression with compressed-tensors"
    hf.expect("format", *FORMATS, because=because)
    for name in ("sparsity_config", "transform_config", "moe_sparsity_config"):
        value = hf(name, None)
        if value and not (isinstance(value, Mapping) and value.get("format") == "dense"):
            raise hf.refused(name, "expected none: jaxlens reads neither sparse nor rotated weights")
    if hf("quantization_config", None) is not None:  # as the first versions of compressed-tensors wrote it
        return settings(inside(hf, "quantization_config", UNUSED))
    groups = hf.inside("config_groups")
    found = [_group(groups, name) for name in hf("config_groups")]
    return [group for group in found if group is not None]


def _group(groups: Reader, name: str) -> Group | None:
    """An entry of config_groups. None if it does not quantize weights."""
    if isinstance(groups(name), list):
        raise groups.refused(name, "expected an object: jaxlens does not know the schemes that names stand for")
    group = inside(groups, name, ("input_activations", "output_activations"))
    group.expect("format", *FORMATS, because="jaxlens reads only these formats")
    targets = tuple(map(str, group("targets", ())))
    if group("weights", None) is None:
        return None
    weights = inside(group, "weights", UNUSED_IN_WEIGHTS)
    block = weights("block_structure", None)
    if isinstance(block, str):  # "128x128", as older versions wrote it
        block = [int(size) for size in block.split("x")] if re.fullmatch(r"\d+x\d+", block) else None
    height, width = block or (None, weights("group_size", None))
    return Group(targets, weights.size("num_bits", 8), height, width if width and width > 0 else None)


def packed(tensors: Tensors, groups: Sequence[Group]) -> Mapping[str, Packed]:
    """Every weight with a `weight_packed`, and every int8 or float8 weight."""
    names = set(tensors.names())
    found = {f"{stem}weight": _from_words(tensors, names, stem, groups) for stem in stems(tensors, "weight_packed")}
    stored = [stem for stem in stems(tensors, "weight") if stored_dtype(tensors, f"{stem}weight") in ("I8", *FLOAT8)]
    return found | {f"{stem}weight": _plain(tensors, names, stem, groups) for stem in stored}


def _plain(tensors: Tensors, names: set[str], stem: str, groups: Sequence[Group]) -> Packed:
    """A weight that is stored as int8 or float8."""
    parts = Parts(tensors, names, stem, ("weight", "weight_scale"), ("weight_zero_point", "weight_g_idx"))
    values = "8-bit " + ("integers" if parts.dtype("weight") == "I8" else "floats")
    scales = _Scales(parts, stem, parts.shape("weight"), groups)
    return scales.packed(values, lambda: parts.read("weight"), as_float32 if values[6:] == "floats" else _as_they_are)


def _from_words(tensors: Tensors, names: set[str], stem: str, groups: Sequence[Group]) -> Packed:
    """A weight that is stored as `weight_packed`: four-bit floats in bytes, or integers in words."""
    if stored_dtype(tensors, f"{stem}weight_packed") == "U8":
        parts = Parts(tensors, names, stem, ("weight_packed", "weight_scale"), ("weight_global_scale",))
        *rows, width = parts.shape("weight_packed") or (0, 0)
        scales = _Scales(parts, stem, (*rows, 2 * width), groups)
        stored = functools.partial(parts.read, "weight_packed")
        return scales.packed("4-bit floats", stored, _from_pairs)
    optional = ("weight_zero_point", "weight_g_idx")
    parts = Parts(tensors, names, stem, ("weight_packed", "weight_scale", "weight_shape"), optional)
    parts.expect("weight_packed", ["I32"])
    parts.expect("weight_shape", ["I64", "I32"], (len(parts.shape("weight_packed")),))
    shape = tuple(int(length) for length in parts.read("weight_shape").ravel())
    n_words, n_columns = parts.shape("weight_packed")[-1], shape[-1]
    fitting = [group for group in groups if n_words in _word_counts(n_columns, group.bits)]
    if not fitting or parts.shape("weight_packed")[:-1] != shape[:-1]:
        has = f"{stem}weight_packed has shape {parts.shape('weight_packed')}, {stem}weight_shape is {shape}"
        expected = " or ".join(str(group.bits) for group in groups)
        raise CheckpointError(f"{has}; expected {expected} bits per integer (config_groups)")
    bits = min(fitting, key=lambda group: group.rank(stem.removesuffix("."))).bits
    scales, dense = _Scales(parts, stem, shape, groups, bits), n_words == _word_counts(n_columns, bits)[0]

    def integers(words: np.ndarray, out: np.ndarray) -> None:
        values = _integers(words, bits, dense)[..., :n_columns] - np.uint8(2 ** (bits - 1))
        out[...] = values.view(np.int8)

    return scales.packed(f"{bits}-bit integers", lambda: parts.read("weight_packed"), integers)


def _as_they_are(values: np.ndarray, out: np.ndarray) -> None:
    out[...] = values


def _from_pairs(pairs: np.ndarray, out: np.ndarray) -> None:
    np.take(FP4_PAIRS, pairs, out=out.view(np.uint64), mode="clip")  # other modes copy `out`


def _word_counts(count: int, bits: int) -> tuple[int, int]:
    """The number of words of 32 bits for `count` integers: without gaps, and with whole integers in each word."""
    return -(-count * bits // 32), -(-count // (32 // bits))


def _integers(words: np.ndarray, bits: int, dense: bool) -> np.ndarray:
    """The integers in words of 32 bits, along the last axis."""
    if dense or 32 % bits == 0:
        return unpack(words, bits)
    shifts = np.arange(0, 32 - bits + 1, bits, dtype=np.uint32)
    integers = words.view(np.uint32)[..., None] >> shifts & np.uint32(2**bits - 1)
    return integers.astype(np.uint8).reshape(*words.shape[:-1], -1)


class _Scales:
    """The scales and zero points of a weight. Raises a CheckpointError if their shapes do not match the weight."""

    def __init__(self, parts: Parts, stem: str, shape: Shape, groups: Sequence[Group], bits: int = 0):
        self.parts, self.shape, self.bits = parts, shape, bits
        parts.expect("weight_scale", (*FLOATS, "U8", "F8_E8M0", "F8_E4M3"))
        grid = grid_shape(shape, parts.shape("weight_scale"))
        given = [(group.height or 1, group.width) for group in groups if group.width]
        sizes = [size for size in (grid and blocks(shape, grid, pair) for pair in given or [(None, None)]) if size]
        if not sizes:
            has = f"{stem}weight has shape {shape}, and {stem}weight_scale has shape {parts.shape('weight_scale')}"
            raise CheckpointError(f"{has}; expected a scale per tensor, row, group or block (config_groups)")
        self.grid, self.size = grid, sizes[0]
        stored = parts.dtype("weight_scale")
        self.dtype = stored if stored in FLOATS else "BF16"
        if "weight_zero_point" in parts and not self._zeros_are_packed:
            parts.expect("weight_zero_point", ("I8", "U8", "I32", "F8_E4M3", *FLOATS), parts.shape("weight_scale"))
        if "weight_g_idx" in parts:
            parts.expect("weight_g_idx", ["I32", "I64"], shape[-1:])
        if "weight_global_scale" in parts:
            parts.expect("weight_global_scale", ["F32"], (), (1,))

    @property
    def _zeros_are_packed(self) -> bool:
        """Whether zero points are packed along the rows."""
        if not self.bits or self.parts.dtype("weight_zero_point") != "I32":
            return False
        n_words = _word_counts(self.shape[-2], self.bits)[0]
        return self.parts.shape("weight_zero_point") == (*self.shape[:-2], n_words, self.grid[-1])

    @property
    def _zeros_are_small(self) -> bool:
        """Whether zero points are integers of at most eight bits."""
        return self._zeros_are_packed or self.parts.dtype("weight_zero_point") in ("I8", "U8")

    def packed(self, values: str, stored: Any, decode: Any) -> Packed:
        """A weight of `stored` values. `decode(rows, out)` writes rows of them as float32."""
        rows_shape = (int(np.prod(self.shape[:-1])), self.shape[-1])

        def read() -> Rows:
            whole = stored()
            whole = whole.reshape(-1, whole.shape[-1])
            layout = self.shape, *self.size, self._columns()
            scales, zero_points = self._scales(), "weight_zero_point" in self.parts
            low, high = FLOAT_MAGNITUDES.get(values, (1, 256))
            known = not zero_points or (values not in FLOAT_MAGNITUDES and self._zeros_are_small)
            normal = known and products_are_normal(self.dtype, scales, low, high)
            scales = Grid(scales, *layout)
            zeros = Grid(self._zeros(), *layout) if zero_points else None

            def rows(rows: slice, out: np.ndarray) -> None:
                decode(whole[rows], out)
                if zeros is not None:
                    zeros.apply(np.subtract, out, rows)
                scales.apply(np.multiply, out, rows)

            return Rows(rows_shape, rounded(self.dtype, rows, normal=normal))

        return Packed(self.parts.names, self.shape, self.dtype, f"{values} {described(*self.size, self.shape)}", read)

    def _columns(self) -> np.ndarray | None:
        """The group of each column. None if groups are consecutive; an index with -1 has not been filled in."""
        index = self.parts.read("weight_g_idx") if "weight_g_idx" in self.parts else np.array([-1])
        if index.max(initial=-1) >= self.grid[-1]:
            found = f"weight_g_idx of {self.parts.names[0]} contains {index.max()}"
            raise CheckpointError(f"{found}; expected indices of {self.grid[-1]} groups; download the checkpoint again")
        return None if index.min(initial=0) < 0 else index

    def _scales(self) -> np.ndarray:
        scales = exponents(self.parts.read("weight_scale")).reshape(self.grid)
        return scales / self.parts.read("weight_global_scale") if "weight_global_scale" in self.parts else scales

    def _zeros(self) -> np.ndarray:
        zeros = self.parts.read("weight_zero_point")
        if not self._zeros_are_packed:
            return zeros.astype(np.float32).reshape(self.grid)
        integers = unpack(np.ascontiguousarray(zeros.swapaxes(-1, -2)), self.bits)[..., : self.shape[-2]]
        return integers.swapaxes(-1, -2).astype(np.float32) - 2 ** (self.bits - 1)


UNUSED_IN_WEIGHTS = (
    "type", "symmetric", "strategy", "dynamic", "actorder", "scale_dtype", "zp_dtype", "observer", "observer_kwargs",
)  # fmt: skip
"""Fields that the tensors and their shapes express."""

COMPANIONS = (
    ".weight_packed", ".weight_shape", ".weight_scale", ".weight_zero_point", ".weight_g_idx", ".weight_global_scale",
)  # fmt: skip
NOT_WEIGHTS = (
    *ACTIVATIONS, "*.input_zero_point", "*.input_global_scale", "*.output_zero_point", "*.k_zero_point",
    "*.v_zero_point",
)  # fmt: skip
UNUSED = (
    "quant_method", "quantization_status", "global_compression_ratio", "ignore", "kv_cache_scheme", "version",
    "run_compressed", "dequantize", "use_optimized_inference",
)  # fmt: skip
COMPRESSED_TENSORS = Method("compressed-tensors", settings, packed, COMPANIONS, NOT_WEIGHTS, UNUSED)
