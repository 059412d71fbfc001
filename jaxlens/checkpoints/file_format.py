"""Describes the files of a checkpoint, for `jaxlens inspect`."""

from collections.abc import Mapping
from typing import Any

from jaxlens.checkpoints import native
from jaxlens.checkpoints.rules.rule import Tensors

TOYS = ("neel", "neel-solu-old", "mingpt")
"""The model_types of models that were published in TransformerLens's layouts."""


def file_format(tensors: Tensors, fields: Mapping[str, Any]) -> str:
    """The format of the files, for example "safetensors in 2 shards, BF16, quantized: mxfp4".

    Tensors that change those of another object have it as the attribute `_tensors`. The innermost object describes the
    files, in its optional attribute `format`. `fields` are those of config.json.
    """
    while not hasattr(tensors, "format") and hasattr(tensors, "_tensors"):
        tensors = tensors._tensors
    described = getattr(tensors, "format", type(tensors).__name__)
    kind = "a folder that jaxlens saved: " if fields.get("model_type") == native.MODEL_TYPE else ""
    kind = "a toy model of TransformerLens: " if fields.get("model_type") in TOYS else kind
    quantization = fields.get("quantization_config")
    method = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
    return f"{kind}{described}" + (f", quantized: {method}" if method else "")
