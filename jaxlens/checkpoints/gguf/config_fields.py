"""Fields of Hugging Face's config.json that architectures share, from the metadata of a GGUF file.

The functions in `config_llama.py` and `config_others.py` return the fields of one architecture. They add those that
llama.cpp hard-codes instead of storing them.
"""

import math
from collections.abc import Mapping
from typing import Any

from jaxlens.checkpoints.gguf.metadata import Metadata
from jaxlens.errors import CheckpointError

Fields = dict[str, Any]

SOFTMAX, SIGMOID = (1, 0, 3), 2
"""The `expert_gating_func` of routers with a softmax (0: not stated; 3: over the chosen experts) and with sigmoids."""

LLAMA_NAMES = {
    "width": "hidden_size", "inner": "intermediate_size", "layers": "num_hidden_layers",
    "heads": "num_attention_heads", "kv_heads": "num_key_value_heads", "context": "max_position_embeddings",
    "head_dim": "head_dim",
}  # fmt: skip
GPT_NAMES = {
    "width": "n_embd", "inner": "n_inner", "layers": "n_layer", "heads": "n_head", "context": "n_positions",
}  # fmt: skip


def sizes(file: Metadata, names: Mapping[str, str] = LLAMA_NAMES) -> Fields:
    """The sizes of a model, as fields called `names`."""
    heads, kv_heads = file.heads, file.kv_heads
    if heads % kv_heads:
        groups = f"{kv_heads} groups, one per key/value head"
        raise CheckpointError(f"{heads} attention heads cannot be divided into {groups}")
    values = {
        "width": file.positive("embedding_length"), "inner": file.positive("feed_forward_length"),
        "layers": file.layers, "heads": heads, "kv_heads": kv_heads, "context": file.positive("context_length"),
        "head_dim": file.head_dim,
    }  # fmt: skip
    file.expect("attention.causal", True)
    if not file.values.get(f"{file.name}.attention.sliding_window"):
        file.skip("attention.sliding_window")  # 0: no window
    return {name: values[size] for size, name in names.items()}


def eps(file: Metadata, name: str = "rms_norm_eps", kind: str = "rms") -> Fields:
    """The epsilon of the norms, as a field called `name`. Some files contain both kinds, or only the other."""
    keys = {"rms": "attention.layer_norm_rms_epsilon", "layer": "attention.layer_norm_epsilon"}
    value = file.positive(keys.pop(kind), *keys.values())
    file.skip(*keys.values())
    return {name: value}


def dense(file: Metadata) -> None:
    """Raises a CheckpointError if the file has experts."""
    for key in ("expert_count", "expert_used_count"):
        file.expect(key, 0)


def chosen_experts(file: Metadata, count: str = "num_experts") -> Fields:
    file.expect("expert_gating_func", *SOFTMAX)
    return {count: file.positive("expert_count"), "num_experts_per_tok": file.positive("expert_used_count")}


def biases(file: Metadata, **fields: str) -> Fields:
    """Fields that are true if a tensor of the first layer has a bias: `attention_bias="attn_q"`."""
    return {field: file.has(f"blk.0.{tensor}.bias") for field, tensor in fields.items()}


def layer_types(layers: list[bool]) -> list[str]:
    return ["sliding_attention" if sliding else "full_attention" for sliding in layers]


# ---- rotary embeddings ----------------------------------------------------------------------------------------------


def rope(file: Metadata, partial: bool = False, yarn: Fields | None = None) -> Fields:
    """The field `rope_parameters`. With `partial`, only some dimensions of a head may be rotated.

    A file contains Llama 3's scaling as one divisor per frequency, without the parameters that determine them. It is
    read as LongRoPE with equal short and long factors, which divides by the same numbers. `yarn` are fields that YaRN
    has in addition.
    """
    size, context = file.head_dim, file.positive("context_length")
    dim = file.get("rope.dimension_count", default=size)
    if not partial:
        file.expect("rope.dimension_count", size)
    file.skip("rope.scaling.finetuned", "rope.dimension_sections")  # sections of images are equal for text
    parameters: Fields = {"rope_type": "default", "rope_theta": float(file.get("rope.freq_base", default=10000.0))}
    parameters |= {"partial_rotary_factor": fraction(dim, size)} if partial else {}
    return {"rope_parameters": parameters | scaling(file, dim // 2, context, yarn or {})}


def fraction(dim: int, size: int) -> float:
    """The share of the `size` dimensions of a head that are rotated. Hugging Face multiplies and rounds down."""
    share = dim / size
    return share if int(size * share) == dim else math.nextafter(share, 2)


def scaling(file: Metadata, frequencies: int, context: int, yarn: Fields) -> Fields:
    """The fields of `rope_parameters` that describe a scaling."""
    factor = float(file.get("rope.scaling.factor", "rope.scale_linear") or 1.0)
    original = file.get("rope.scaling.original_context_length", default=context)
    kind = file.get("rope.scaling.type", default="linear")
    if kind not in ("none", "linear", "yarn", "longrope"):
        raise CheckpointError(f"{file.name}.rope.scaling.type is {kind!r}; expected none, linear, yarn or longrope")
    factors = file.frequency_factors("rope_freqs.weight", frequencies)
    short, long = (file.frequency_factors(f"rope_factors_{name}.weight", frequencies) for name in ("short", "long"))
    attention_factor = file.get("rope.scaling.attn_factor", default=1.0)
    if short and long:
        fields = {"rope_type": "longrope", "short_factor": short, "long_factor": long}
        return fields | {"attention_factor": attention_factor, "original_max_position_embeddings": original}
    if short or long or kind == "longrope":
        raise CheckpointError("LongRoPE needs rope_factors_short.weight and rope_factors_long.weight; one is missing")
    if attention_factor != 1.0:
        raise CheckpointError(f"{file.name}.rope.scaling.attn_factor is {attention_factor!r}; expected 1.0")
    scaled = kind != "none" and factor != 1.0
    if factors is not None and scaled:
        raise CheckpointError(f"the file has rope_freqs.weight and {kind} scaling by {factor}; expected one of the two")
    if factors is not None:
        fields = {"rope_type": "longrope", "short_factor": factors, "long_factor": factors, "attention_factor": 1.0}
        return fields | {"original_max_position_embeddings": context}
    if not scaled:
        return {}
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    file.expect("rope.scaling.yarn_ext_factor", 1.0)
    keys = {"beta_fast": "yarn_beta_fast", "beta_slow": "yarn_beta_slow", "attention_factor": "yarn_attn_factor"}
    given = {name: file.get(f"rope.scaling.{key}") for name, key in keys.items()}
    given = {name: value for name, value in given.items() if value is not None}
    return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original, **yarn, **given}


def llama_like(file: Metadata, partial: bool = False) -> Fields:
    """The fields of a dense Llama, except its biases."""
    dense(file)
    return sizes(file) | eps(file) | rope(file, partial) | {"hidden_act": "silu"}


def expert_size(file: Metadata) -> int:
    size = file.rows("ffn_down_exps.weight", axis=2) or file.rows("ffn_down.0.weight", axis=1)
    return file.get("expert_feed_forward_length", default=size)
