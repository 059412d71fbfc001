"""The methods of quantization by their names in config.json, and the field of a config.json that describes one."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxlens.checkpoints.quantized.awq import AUTOROUND_AWQ, AWQ
from jaxlens.checkpoints.quantized.bitsandbytes import BITSANDBYTES
from jaxlens.checkpoints.quantized.compressed_tensors import COMPRESSED_TENSORS
from jaxlens.checkpoints.quantized.fp8 import FBGEMM, FP8
from jaxlens.checkpoints.quantized.gptq import AUTOROUND, GPTQ, ROUND_FORMATS
from jaxlens.checkpoints.quantized.mxfp4 import MXFP4
from jaxlens.checkpoints.quantized.packed import Method, inside
from jaxlens.checkpoints.rules.hf_config import Reader
from jaxlens.checkpoints.rules.rule import FLOATS
from jaxlens.checkpoints.safetensors_reader import read_json

METHODS: Mapping[str, Method] = {
    "awq": AWQ, "bitsandbytes": BITSANDBYTES, "compressed-tensors": COMPRESSED_TENSORS, "fbgemm_fp8": FBGEMM,
    "fp8": FP8, "gptq": GPTQ, "mxfp4": MXFP4, "mxfp8": FP8, "auto-round": AUTOROUND,
}  # fmt: skip
"""The methods by `quant_method`."""

ROUND_METHODS: Mapping[str, Method] = {
    **dict.fromkeys(ROUND_FORMATS, AUTOROUND), "auto_round:auto_awq": AUTOROUND_AWQ, "auto_round:awq": AUTOROUND_AWQ,
}  # fmt: skip
"""The methods of AutoRound by `packing_format`."""

FIELDS = ("quantization_config", "compression_config")
"""The names of the field that describes a quantization. compressed-tensors' first versions wrote the second."""

TEXT = ("text_config", "llm_config", "language_config")
"""The fields of a multimodal config.json that may contain such a field."""

FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
"""Files in which older versions of AutoGPTQ and AutoAWQ wrote this field, and their methods."""


@dataclasses.dataclass(frozen=True)
class Quantization:
    """The quantization that a config.json describes. `dtype` is the dtype of the model, as safetensors spells it."""

    method: Method
    settings: Any
    dtype: str


def read_quantization(hf: Reader, fields: Mapping[str, Any]) -> Quantization | None:
    """The quantization that a config.json describes, or None.

    Raises a CheckpointError if its method is not supported. `fields` are the fields of the config.json itself.
    """
    readers = [hf, *(hf.inside(name) for name in TEXT if _is_quantized(fields.get(name)))]
    found = [inside(reader, name) for reader in readers for name in FIELDS if reader(name, None) is not None]
    return _read(found[0], _dtype(fields)) if found else None


def _read(hf: Reader, dtype: str) -> Quantization:
    method = METHODS.get(name) if isinstance(name := _name(hf), str) else None
    if method is AUTOROUND and (method := ROUND_METHODS.get(hf("packing_format", "auto_round"))) is None:
        raise hf.refused("packing_format", f"expected one of {', '.join(ROUND_METHODS)}")
    if method is None:
        remedy = "load it with transformers, and save model.dequantize(), or use the checkpoint without quantization"
        raise hf.refused("quant_method", f"expected one of {', '.join(sorted(METHODS))}. To use this model, {remedy}")
    for field in method.unused:
        hf(field, None)
    return Quantization(method, method.settings(hf), dtype)


def _name(hf: Reader) -> Any:
    """The name of the method. Old versions of bitsandbytes left it out, and AutoRound wrote another."""
    name = hf("quant_method", None)
    if name is None and (hf("load_in_8bit", False) or hf("load_in_4bit", False)):
        return "bitsandbytes"
    return {"intel/auto-round": "auto-round"}.get(name, name) if isinstance(name, str) else name


def without_quantization(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config.json without those that describe a quantization."""
    kept = {name: value for name, value in fields.items() if name not in FIELDS}
    return kept | {name: without_quantization(kept[name]) for name in TEXT if isinstance(kept.get(name), Mapping)}


def _is_quantized(fields: Any) -> bool:
    return isinstance(fields, Mapping) and any(fields.get(name) is not None for name in FIELDS)


def with_files(folder: Path, fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a config.json, with the quantization that another file of the folder describes."""
    if any(map(_is_quantized, (fields, *(fields.get(name) for name in TEXT)))):
        return fields
    found = [(file, method) for file, method in FILES.items() if (folder / file).is_file()]
    described = [{"quant_method": method, **read_json(folder / file)} for file, method in found[:1]]
    return {**fields, "quantization_config": described[0]} if described else fields


def _dtype(fields: Mapping[str, Any]) -> str:
    """The dtype of the model before it was quantized, as safetensors spells it."""
    names = {f"{prefix}{numpy}": stored for stored, numpy in FLOATS.items() for prefix in ("", "torch.")}
    sources = [fields, *(fields[name] for name in TEXT if isinstance(fields.get(name), Mapping))]
    stated = [source.get(name) for source in sources for name in ("dtype", "torch_dtype")]
    return next((names[name] for name in stated if isinstance(name, str) and name in names), "F32")
