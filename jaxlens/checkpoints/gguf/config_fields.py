"""Converts the metadata of a GGUF file to the fields of Hugging Face's config.json, for each architecture of llama.cpp.

Each function returns the fields of one architecture. It adds those that llama.cpp hard-codes instead of storing them.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxlens.checkpoints.gguf.metadata import Metadata
from jaxlens.errors import CheckpointError

Fields = dict[str, Any]

SOFTMAX, SIGMOID = (1, 0, 3), 2
"""The `expert_gating_func` of routers with a softmax (0: not stated; 3: over the chosen experts) and with sigmoids."""

PHI_MOE_MSCALE = 1.243163121016122
"""`short_mscale` and `long_mscale` of Phi 3.5 MoE, the only published model of its architecture. Files lack them."""

QWEN_CONTEXTS = {40: 2048, 80: 32768}
"""The context of training of Qwen 14B and 72B, by the number of layers. That of the smaller models is 8192."""

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


# ---- Llama and its relatives ----------------------------------------------------------------------------------------


def llama_like(file: Metadata, partial: bool = False) -> Fields:
    """The fields of a dense Llama, except its biases."""
    dense(file)
    return sizes(file) | eps(file) | rope(file, partial) | {"hidden_act": "silu"}


def llama(file: Metadata) -> Fields:
    """Llama. With a window, the file is a Mistral, and with experts a Mixtral."""
    file.raw("llama.tensor_data_layout")  # its rows are interleaved; see `halves`
    fields = sizes(file) | eps(file) | rope(file) | {"hidden_act": "silu"}
    window = file.get("attention.sliding_window") or None
    if file.get("expert_count", default=0):
        file.skip("expert_feed_forward_length")
        return fields | chosen_experts(file, "num_local_experts") | {"model_type": "mixtral", "sliding_window": window}
    dense(file)
    if window:
        return fields | {"model_type": "mistral", "sliding_window": window}
    return fields | biases(file, attention_bias="attn_q", mlp_bias="ffn_gate")


def as_llama(file: Metadata) -> Fields:
    """Architectures that differ from Llama only in names: Baichuan (7B), InternLM 2, XVERSE, EXAONE 3."""
    file.skip("tensor_data_layout", "attention.layer_norm_epsilon")
    return llama_like(file) | biases(file, attention_bias="attn_q", mlp_bias="ffn_gate")


def baichuan(file: Metadata) -> Fields:
    if file.layers == 40:
        raise CheckpointError("Baichuan 13B has ALiBi positions, which jaxlens supports in BLOOM, MPT and Falcon only")
    return as_llama(file)


def arcee(file: Metadata) -> Fields:
    return llama_like(file) | biases(file, attention_bias="attn_q", mlp_bias="ffn_up") | {"hidden_act": "relu2"}


def with_biases(file: Metadata) -> Fields:
    """Architectures with Llama's fields: Qwen 3, EXAONE 4 without windows, OLMo 2, …"""
    return llama_like(file) | biases(file, attention_bias="attn_q")


def qwen2(file: Metadata) -> Fields:
    return llama_like(file)


def qwen3vl(file: Metadata) -> Fields:
    file.skip("n_deepstack_layers")  # layers that add features of images
    return with_biases(file)


def qwen(file: Metadata) -> Fields:
    """Files do not contain the context of training, `seq_length`, after which the published code changes positions."""
    fields = llama_like(file)
    context = min(fields["max_position_embeddings"], QWEN_CONTEXTS.get(file.layers, 8192))
    kept = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
    return {name: fields[name] for name in kept} | {
        "layer_norm_epsilon": fields["rms_norm_eps"], "seq_length": context,
        "kv_channels": fields["head_dim"], "rotary_emb_base": fields["rope_parameters"]["rope_theta"], "no_bias": True,
    }  # fmt: skip


def mixture(file: Metadata) -> Fields:
    """The fields of Qwen's and OLMo's mixtures of experts."""
    file.skip("n_deepstack_layers", "expert_group_count", "expert_group_used_count")
    fields = sizes(file) | eps(file) | rope(file) | chosen_experts(file)
    return fields | {"hidden_act": "silu", "norm_topk_prob": file.get("expert_weights_norm", default=False)}


def expert_size(file: Metadata) -> int:
    size = file.rows("ffn_down_exps.weight", axis=2) or file.rows("ffn_down.0.weight", axis=1)
    return file.get("expert_feed_forward_length", default=size)


def qwen2moe(file: Metadata) -> Fields:
    shared = file.get("expert_shared_feed_forward_length", default=file.rows("ffn_gate_shexp.weight"))
    sizes = {"moe_intermediate_size": expert_size(file), "shared_expert_intermediate_size": shared}
    return mixture(file) | sizes | biases(file, qkv_bias="attn_q")


def qwen3moe(file: Metadata) -> Fields:
    normalized = file.get("expert_weights_norm", default=True)
    fields = {"moe_intermediate_size": expert_size(file), "norm_topk_prob": normalized}
    return mixture(file) | fields | biases(file, attention_bias="attn_q")


def olmoe(file: Metadata) -> Fields:
    fields = mixture(file) | {"intermediate_size": expert_size(file), "clip_qkv": file.get("attention.clamp_kqv")}
    return fields | biases(file, attention_bias="attn_q")


def olmo(file: Metadata) -> Fields:
    file.skip("attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon")  # always 1e-5
    fields = sizes(file) | rope(file) | {"hidden_act": "silu", "clip_qkv": file.get("attention.clamp_kqv")}
    return fields | biases(file, attention_bias="attn_q")


def olmo2(file: Metadata) -> Fields:
    """OLMo 2, or OLMo 3, which has windows, and scales the rotary frequencies of global layers only."""
    fields = with_biases(file)
    if not (window := file.get("attention.sliding_window")):
        return fields
    base = fields["rope_parameters"]["rope_theta"]
    local = {"rope_type": "default", "rope_theta": float(file.get("rope.freq_base_swa", default=base))}
    by_type = {"full_attention": fields["rope_parameters"], "sliding_attention": local}
    types = layer_types(file.sliding_layers(4))
    return fields | {
        "model_type": "olmo3", "sliding_window": window, "layer_types": types, "rope_parameters": by_type,
    }  # fmt: skip


def exaone4(file: Metadata) -> Fields:
    """Only the model with 64 layers has windows by default."""
    window = file.get("attention.sliding_window", default=4096 if file.layers == 64 else None)
    layers = file.sliding_layers(4) if window else [False] * file.layers
    if window:
        base = float(file.get("rope.freq_base", default=10000.0))
        file.expect("rope.freq_base_swa", base)
    return llama_like(file) | {"sliding_window": window or None, "layer_types": layer_types(layers)}


def smollm3(file: Metadata) -> Fields:
    """Every fourth layer has no positions."""
    layers = file.layers
    windows = {"no_rope_layers": [int((layer + 1) % 4 != 0) for layer in range(layers)], "use_sliding_window": False}
    types = {"layer_types": ["full_attention"] * layers, "sliding_window": None}
    return llama_like(file) | windows | types | biases(file, attention_bias="attn_q", mlp_bias="ffn_gate")


def seed_oss(file: Metadata) -> Fields:
    named = {"attention_bias": "attn_q", "attention_out_bias": "attn_output", "mlp_bias": "ffn_gate"}
    return llama_like(file) | biases(file, **named)


def ernie(file: Metadata) -> Fields:
    return llama_like(file) | biases(file, use_bias="attn_q")


def ministral3(file: Metadata) -> Fields:
    """YaRN's weight of scores, `mscale_all_dim`, and the growth of queries are metadata. A Mistral has neither."""
    weight = file.get("rope.scaling.yarn_log_multiplier", default=0.0)
    yarn = {"mscale": 1.0, "mscale_all_dim": weight} if weight else {}
    fields = sizes(file) | eps(file) | rope(file, yarn=yarn) | {"hidden_act": "silu"}
    dense(file)
    if growth := file.get("attention.temperature_scale"):
        fields["rope_parameters"]["llama_4_scaling_beta"] = growth
    kind = "ministral3" if growth else "mistral"
    return fields | {"model_type": kind, "sliding_window": file.get("attention.sliding_window") or None}


def apertus(file: Metadata) -> Fields:
    """The learned parameters of xIELU are lists in the metadata."""
    for name in ("alpha_p", "alpha_n", "beta", "eps"):
        values = file.raw(f"xielu.{name}")
        each = values if isinstance(values, list) else [values] * file.layers
        if len(each) != file.layers or not all(isinstance(value, float) for value in each):
            raise CheckpointError(f"xielu.{name} is {values}; expected one number for each of {file.layers} layers")
        shape = (1,) if name.startswith("alpha") else ()
        for layer, value in enumerate(each):
            file.made[f"model.layers.{layer}.mlp.act_fn.{name}"] = np.full(shape, value, np.float32)
    return with_biases(file) | {"hidden_act": "xielu"}


def granite(file: Metadata) -> Fields:
    """Granite's factors are metadata. A head's size is not."""
    fields = sizes(file) | eps(file) | rope(file) | {"hidden_act": "silu"}
    return fields | multipliers(file) | biases(file, attention_bias="attn_q", mlp_bias="ffn_gate")


def multipliers(file: Metadata, **defaults: float) -> Fields:
    keys = {
        "attention_multiplier": "attention.scale", "embedding_multiplier": "embedding_scale",
        "residual_multiplier": "residual_scale", "logits_scaling": "logit_scale",
    }  # fmt: skip
    fallback = {"attention_multiplier": 1 / math.sqrt(file.head_dim), **defaults}
    return {name: file.get(key, default=fallback.get(name, 1.0)) for name, key in keys.items()}


def granitemoe(file: Metadata) -> Fields:
    file.skip("expert_feed_forward_length")
    fields = granite(file) | chosen_experts(file, "num_local_experts")
    return {name: value for name, value in fields.items() if name != "mlp_bias"}


def minicpm(file: Metadata) -> Fields:
    """MiniCPM is a Granite. Older files do not contain its factors, which llama.cpp then takes from the 2B model."""
    width = file.positive("embedding_length")
    defaults = {
        "embedding_multiplier": 12.0, "residual_multiplier": 1.4 / math.sqrt(file.layers),
        "logits_scaling": width / 256,
    }  # fmt: skip
    dense(file)
    fields = sizes(file) | eps(file) | rope(file) | {"hidden_act": "silu"}
    return fields | multipliers(file, **defaults) | biases(file, attention_bias="attn_q", mlp_bias="ffn_gate")


def hunyuan(file: Metadata) -> Fields:
    """The base in the file includes Hunyuan's `alpha`."""
    file.skip("rope.scaling.original_context_length")
    return with_biases(file)


# ---- Gemma ----------------------------------------------------------------------------------------------------------


def gemma(file: Metadata) -> Fields:
    fields = {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}
    return llama_like(file) | fields | biases(file, attention_bias="attn_q")


def gemma_with_windows(file: Metadata, n_layers_of_largest: int, period: int) -> Fields:
    """The fields of Gemma 2 and 3. Only the largest models scale queries by hidden_size / n_heads."""
    fields, window = llama_like(file), file.get("attention.sliding_window")
    heads, is_largest = fields["num_attention_heads"], fields["num_hidden_layers"] == n_layers_of_largest
    layers = file.sliding_layers(period) if window else [False] * file.layers
    del fields["hidden_act"]
    return fields | biases(file, attention_bias="attn_q") | {
        "hidden_activation": "gelu_pytorch_tanh", "sliding_window": window or 4096, "layer_types": layer_types(layers),
        "query_pre_attn_scalar": fields["hidden_size"] // heads if is_largest else fields["head_dim"],
        "final_logit_softcapping": file.get("final_logit_softcapping") or None,
    }  # fmt: skip


def gemma2(file: Metadata) -> Fields:
    """Every second layer is global."""
    fields = gemma_with_windows(file, 46, 2)
    file.expect("rope.freq_base_swa", fields["rope_parameters"]["rope_theta"])
    return fields | {"attn_logit_softcapping": file.get("attn_logit_softcapping") or None}


def gemma3(file: Metadata) -> Fields:
    """Every sixth layer is global. The rope base and scaling in the file are those of the global layers."""
    fields = gemma_with_windows(file, 62, 6)
    local = {"rope_type": "default", "rope_theta": float(file.get("rope.freq_base_swa", default=10000.0))}
    rope = {"full_attention": fields["rope_parameters"], "sliding_attention": local}
    return fields | {"rope_parameters": rope}
