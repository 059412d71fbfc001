"""Weights that bitsandbytes has quantized to eight bits (LLM.int8()) or four (NF4, FP4).

Methods: "LLM.int8()" (arXiv 2208.07339) and "QLoRA" (arXiv 2305.14314). Layouts and arithmetic: `QuantState`,
`dequantize_4bit` and `int8_vectorwise_dequant` of `functional.py` in bitsandbytes 0.50.

Eight bits: `weight [out, in]`, and `SCB [out]`, the largest magnitude of each row: a weight is integer * SCB / 127.

Four bits: `weight` has two values per byte, the first in the higher bits. A value is an entry of `quant_map` times the
largest magnitude of its block, `absmax`. These may be quantized too: as entries of `nested_quant_map` times the
`nested_absmax` of their block, plus an offset. `quant_state.bitsandbytes__nf4` or `…__fp4` is JSON with the sizes.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxlens.checkpoints.arrays import Rows
from jaxlens.checkpoints.quantized.packed import Method, Packed, Parts, products_are_normal, rounded, stems
from jaxlens.checkpoints.rules.hf_config import Reader
from jaxlens.checkpoints.rules.rule import FLOATS, Tensors
from jaxlens.errors import CheckpointError

INVERSE_127 = np.float32(7.874015718698502e-3)
STATE = ".quant_state.bitsandbytes__"
NESTED = ("nested_absmax", "nested_quant_map")
DTYPES = {numpy: safetensors for safetensors, numpy in FLOATS.items()}


def settings(hf: Reader) -> None:
    """Checks that the field describes weights of four or eight bits. The tensors have all settings."""
    method = hf("_load_in_4bit", None), hf("_load_in_8bit", None), hf("load_in_4bit", None), hf("load_in_8bit", None)
    if not any(method):
        raise hf.refused("load_in_4bit", "expected load_in_4bit or load_in_8bit to be true")


def packed(tensors: Tensors, _: None) -> Mapping[str, Packed]:
    """Every weight with an `SCB` or a `quant_state`."""
    names = set(tensors.names())
    eight = {f"{stem}weight": _eight_bits(tensors, names, stem) for stem in stems(tensors, "SCB")}
    states = [(name, *name.rpartition(STATE)[::2]) for name in tensors.names() if STATE in name]
    return eight | {weight: _four_bits(tensors, names, weight, STATE + kind) for _, weight, kind in states}


def _eight_bits(tensors: Tensors, names: set[str], stem: str) -> Packed:
    parts = Parts(tensors, names, stem, ("weight", "SCB"), ("weight_format",))
    shape = parts.shape("weight")
    parts.expect("weight", ["I8"])
    parts.expect("SCB", FLOATS, shape[:1])
    if len(shape) != 2:
        raise CheckpointError(f"{stem}weight has shape {shape}; expected two axes, as bitsandbytes stores it")

    def read() -> Rows:
        if "weight_format" in parts and (stored := parts.read("weight_format")).any():
            raise CheckpointError(
                f"{stem}weight_format is {stored}; expected 0 (by rows). Save the model again with bitsandbytes 0.45"
            )
        values, largest = parts.read("weight"), parts.read("SCB").astype(np.float32)[:, None]

        def rows(rows: slice, out: np.ndarray) -> None:
            out[...] = values[rows]
            out *= largest[rows]
            out *= INVERSE_127

        return Rows(shape, rows)

    return Packed(parts.names, shape, "F32", "8-bit integers with a scale per row", read)


def _four_bits(tensors: Tensors, names: set[str], weight: str, state: str) -> Packed:
    nested = tuple(f".{part}" for part in NESTED if f"{weight}.{part}" in names)
    needed = ("", state, ".absmax", ".quant_map", *(f".{part}" for part in NESTED if nested))
    parts = Parts(tensors, names, weight, needed)
    fields = _state(parts, weight, state)
    shape, size = tuple(fields["shape"]), fields["blocksize"]
    count, dtype = math.prod(shape), DTYPES[fields["dtype"]]
    n_blocks = -(-count // size)
    parts.expect(".quant_map", FLOATS, (16,))
    parts.expect(".absmax", ["U8"] if nested else FLOATS, (n_blocks,))
    if nested:
        parts.expect(".nested_quant_map", FLOATS, (256,))
        parts.expect(".nested_absmax", FLOATS, (-(-n_blocks // fields["nested_blocksize"]),))

    def read() -> Rows | np.ndarray:
        stored = np.ascontiguousarray(parts.read("")).reshape(-1).view(np.uint8)
        if stored.size != -(-count // 2):
            raise CheckpointError(f"{weight} has {stored.size} bytes; expected two values per byte for shape {shape}")
        values, largest = parts.read(".quant_map").astype(np.float32), _largest(parts, fields)
        magnitudes = np.abs(values[values != 0])
        normal = products_are_normal(dtype, largest, magnitudes.min(initial=1), magnitudes.max(initial=0))
        pairs = values[np.stack([np.arange(256) >> 4, np.arange(256) & 15], axis=1)].view(np.uint64)[:, 0]

        def blocks(blocks: slice, out: np.ndarray) -> None:
            chosen = stored[blocks.start * size // 2 : blocks.stop * size // 2]  # the last block may be smaller
            np.take(pairs, chosen, out=out.reshape(-1).view(np.uint64)[: len(chosen)], mode="clip")
            out *= largest[blocks, None]

        fill = rounded(dtype, blocks, normal=normal)
        if count % size or shape[-1] % size:
            return Rows((n_blocks, size), fill).array().reshape(-1)[:count].reshape(shape)
        width = shape[-1] // size

        def rows(rows: slice, out: np.ndarray) -> None:
            fill(slice(rows.start * width, rows.stop * width), out.reshape(-1, size))

        return Rows((count // shape[-1], shape[-1]), rows)

    kind = f"4-bit {state.removeprefix(STATE).upper()} in blocks of {size}{' with quantized scales' if nested else ''}"
    return Packed(parts.names, shape, dtype, kind, read)


def _largest(parts: Parts, fields: Mapping[str, Any]) -> np.ndarray:
    """The largest magnitude of each block, as float32."""
    stored = parts.read(".absmax")
    if stored.dtype != np.uint8:
        return stored.astype(np.float32)
    values, scales = (parts.read(f".{part}").astype(np.float32) for part in ("nested_quant_map", "nested_absmax"))
    scales = np.repeat(scales, fields["nested_blocksize"])[: len(stored)]
    return values[stored] * scales + np.float32(fields["nested_offset"])


def _state(parts: Parts, weight: str, state: str) -> dict[str, Any]:
    """The JSON that describes a four-bit weight. Raises a CheckpointError unless it has what is needed."""
    try:
        fields = json.loads(parts.read(state).tobytes())
        sizes = [*fields["shape"], fields["blocksize"]]
        if ".nested_absmax" in parts:
            sizes.append(fields["nested_blocksize"])
            float(fields["nested_offset"])
        if not all(type(size) is int and size > 0 for size in sizes) or sizes[len(fields["shape"])] % 2:
            raise ValueError(f"sizes are {sizes}")
        if fields["dtype"] not in DTYPES:
            raise ValueError(f"dtype is {fields['dtype']!r}")
        if fields["quant_type"] != state.removeprefix(STATE):
            raise ValueError(f"quant_type is {fields['quant_type']!r}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        expected = "expected JSON with the shape, blocksize, dtype and quant_type of the weight"
        raise CheckpointError(f"{weight}{state} is not a state of bitsandbytes ({error!r}); {expected}") from error
    return fields


UNUSED = tuple(
    " ".join(
        (
            "quant_method llm_int8_threshold llm_int8_skip_modules llm_int8_enable_fp32_cpu_offload",
            "llm_int8_has_fp16_weight bnb_4bit_compute_dtype bnb_4bit_quant_type bnb_4bit_use_double_quant",
            "bnb_4bit_quant_storage",
        )
    ).split()
)
COMPANIONS = (".SCB", ".weight_format", ".absmax", ".quant_map", *(f".{part}" for part in NESTED))
BITSANDBYTES = Method("bitsandbytes", settings, packed, COMPANIONS, unused=UNUSED)
