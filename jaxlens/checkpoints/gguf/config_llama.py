"""The fields of config.json for Llama, its relatives, and Gemma; see `config_fields.py`."""

import math

import numpy as np

from jaxlens.checkpoints.gguf.config_fields import (
    Fields,
    biases,
    chosen_experts,
    dense,
    eps,
    expert_size,
    layer_types,
    llama_like,
    rope,
    sizes,
)
from jaxlens.checkpoints.gguf.metadata import Metadata
from jaxlens.errors import CheckpointError

QWEN_CONTEXTS = {40: 2048, 80: 32768}
"""The context of training of Qwen 14B and 72B, by the number of layers. That of the smaller models is 8192."""


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
