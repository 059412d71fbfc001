"""The fields of config.json for architectures that differ more from Llama; see `config_fields.py`."""

from jaxlens.checkpoints.gguf.config_fields import (
    GPT_NAMES,
    SIGMOID,
    Fields,
    biases,
    chosen_experts,
    dense,
    eps,
    expert_size,
    layer_types,
    llama_like,
    rope,
    scaling,
    sizes,
)
from jaxlens.checkpoints.gguf.metadata import Metadata
from jaxlens.errors import CheckpointError

PHI_MOE_MSCALE = 1.243163121016122
"""`short_mscale` and `long_mscale` of Phi 3.5 MoE, the only published model of its architecture. Files lack them."""

DEEPSEEK_GROUPS = {160: (8, 3), 256: (8, 4)}
"""The groups of experts of DeepSeek V2 and V3, by the number of experts: older files do not contain them."""


def gpt_oss(file: Metadata) -> Fields:
    """Every second layer has a window. YaRN's boundaries are not rounded, which llama.cpp ignores."""
    types = layer_types(file.sliding_layers(2))
    fields = sizes(file) | eps(file) | rope(file, yarn={"truncate": False}) | chosen_experts(file, "num_local_experts")
    file.expect("rope.freq_base_swa", fields["rope_parameters"]["rope_theta"])
    return fields | biases(file, attention_bias="attn_q") | {
        "intermediate_size": expert_size(file), "layer_types": types, "hidden_act": "silu",
        "sliding_window": file.positive("attention.sliding_window"),
    }  # fmt: skip


def deepseek2(file: Metadata) -> Fields:
    """DeepSeek V2 or V3. In newer files, heads share one key, and sizes per head have keys of their own (`_mla`)."""
    version = 3 if file.get("expert_gating_func") == SIGMOID or file.rows("exp_probs_b.bias") else 2
    latent, rotated = file.positive("attention.kv_lora_rank"), file.positive("rope.dimension_count")
    key = file.get("attention.key_length_mla", default=file.get("attention.key_length"))
    value = file.get("attention.value_length_mla", default=file.get("attention.value_length"))
    file.expect("attention.head_count_kv", 1, file.heads)
    file.expect("attention.causal", True)
    file.expect("expert_gating_func", 0, 1, SIGMOID)
    file.skip("attention.key_length", "attention.value_length")
    weight = round(10 * file.get("rope.scaling.yarn_log_multiplier", default=0.0), 6)
    yarn = {"mscale": weight, "mscale_all_dim": weight} if weight else {}
    published = DEEPSEEK_GROUPS.get(file.positive("expert_count"), (1, 1))
    groups = (
        file.get("expert_group_count", default=published[0]), file.get("expert_group_used_count", default=published[1])
    )  # fmt: skip
    limited = {"topk_method": "group_limited_greedy" if groups[0] > 1 else "greedy"}
    return {
        "model_type": f"deepseek_v{version}", "hidden_size": file.positive("embedding_length"),
        "intermediate_size": file.positive("feed_forward_length"), "num_hidden_layers": file.layers,
        "num_attention_heads": file.heads, "num_key_value_heads": file.heads,
        "max_position_embeddings": file.positive("context_length"), "hidden_act": "silu",
        "kv_lora_rank": latent, "q_lora_rank": file.get("attention.q_lora_rank"), "qk_rope_head_dim": rotated,
        "qk_nope_head_dim": key - rotated, "v_head_dim": value, "n_routed_experts": file.positive("expert_count"),
        "num_experts_per_tok": file.positive("expert_used_count"), "moe_intermediate_size": expert_size(file),
        "n_shared_experts": file.positive("expert_shared_count"),
        "n_group": groups[0], "topk_group": groups[1],
        "first_k_dense_replace": file.get("leading_dense_block_count", default=0),
        "routed_scaling_factor": file.get("expert_weights_scale") or 1.0,
        "norm_topk_prob": bool(file.get("expert_weights_norm", default=False)), **eps(file),
        **latent_rope(file, rotated, yarn), **(limited if version == 2 else {}),
    }  # fmt: skip


def latent_rope(file: Metadata, rotated: int, yarn: Fields) -> Fields:
    """The rotary embedding of the `rotated` dimensions that keys and queries have in addition."""
    base = float(file.get("rope.freq_base", default=10000.0))
    file.skip("rope.scaling.finetuned")
    fields = scaling(file, rotated // 2, file.positive("context_length"), yarn)
    return {"rope_parameters": {"rope_type": "default", "rope_theta": base, **fields}}


def glm(file: Metadata) -> Fields:
    """GLM-4. Half of each head is rotated."""
    return llama_like(file, partial=True) | biases(file) | {"attention_bias": has_qkv_bias(file)}


def has_qkv_bias(file: Metadata) -> bool:
    return any(file.has(f"blk.0.{name}.bias") for name in ("attn_q", "attn_qkv"))


def layer_norms(file: Metadata, name: str = "layer_norm_eps", partial: bool = False) -> Fields:
    """The fields of a Llama with LayerNorms."""
    dense(file)
    return sizes(file) | eps(file, name, "layer") | rope(file, partial) | {"hidden_act": "silu"}


def cohere(file: Metadata) -> Fields:
    fields = layer_norms(file) | {"logit_scale": file.get("logit_scale", default=1.0)}
    return fields | {"use_qk_norm": file.has("blk.0.attn_q_norm.weight")} | biases(file, attention_bias="attn_q")


def cohere2(file: Metadata) -> Fields:
    """Every fourth layer is global."""
    fields = layer_norms(file) | {"logit_scale": file.get("logit_scale", default=1.0)}
    file.expect("rope.freq_base_swa", fields["rope_parameters"]["rope_theta"])
    types, window = layer_types(file.sliding_layers(4)), file.positive("attention.sliding_window")
    return fields | {"layer_types": types, "sliding_window": window} | biases(file, attention_bias="attn_q")


def stablelm(file: Metadata) -> Fields:
    """Attention and MLP are parallel if there is no second norm; `use_parallel_residual` is wrong in many files."""
    file.skip("use_parallel_residual")
    fields = layer_norms(file, partial=True) | biases(file, use_qkv_bias="attn_q")
    has = {"use_parallel_residual": not file.has("blk.0.ffn_norm.weight")}
    return fields | has | {"qk_layernorm": file.has("blk.0.attn_q_norm.weight")}


def orion(file: Metadata) -> Fields:
    """Orion is a StableLM whose heads are rotated entirely."""
    file.skip("tensor_data_layout")
    fields = layer_norms(file, partial=True)
    return fields | {"use_parallel_residual": False, "qk_layernorm": False, "use_qkv_bias": False}


def nemotron(file: Metadata) -> Fields:
    fields = layer_norms(file, "norm_eps", partial=True) | {"hidden_act": "relu2"}
    return fields | biases(file, attention_bias="attn_q", mlp_bias="ffn_up")


def starcoder2(file: Metadata) -> Fields:
    window = file.get("attention.sliding_window") or None
    fields = layer_norms(file, "norm_epsilon") | {"hidden_act": "gelu_pytorch_tanh", "sliding_window": window}
    return fields | biases(file, use_bias="attn_q")


def phi2(file: Metadata) -> Fields:
    return layer_norms(file, partial=True) | {"hidden_act": "gelu_new", "qk_layernorm": False}


def phi3(file: Metadata) -> Fields:
    """The rotary embedding may leave some dimensions of a head unchanged. LongRoPE's two lists are tensors."""
    original = file.get("rope.scaling.original_context_length", default=file.positive("context_length"))
    return llama_like(file, partial=True) | {
        "original_max_position_embeddings": original,
        "sliding_window": file.get("attention.sliding_window") or None,  # 0: no window
    }


def phimoe(file: Metadata) -> Fields:
    fields = sizes(file) | eps(file) | rope(file) | chosen_experts(file, "num_local_experts") | {"hidden_act": "silu"}
    parameters = fields["rope_parameters"]
    if parameters["rope_type"] == "longrope":
        del parameters["attention_factor"]
        parameters |= {"short_mscale": PHI_MOE_MSCALE, "long_mscale": PHI_MOE_MSCALE}
    file.skip("expert_feed_forward_length", "rope.scaling.original_context_length")
    window = {"sliding_window": file.get("attention.sliding_window") or None}
    return fields | window | biases(file, attention_bias="attn_q") | {"lm_head_bias": file.has("output.bias")}


# ---- GPT ------------------------------------------------------------------------------------------------------------


def gpt(file: Metadata, activation: str, **fields: object) -> Fields:
    return sizes(file, GPT_NAMES) | eps(file, "layer_norm_epsilon", "layer") | {
        "activation_function": activation, **fields,
    }  # fmt: skip


def gpt2(file: Metadata) -> Fields:
    file.expect("attention.head_count_kv", file.heads)
    return gpt(file, "gelu_new")


def gptj(file: Metadata) -> Fields:
    return gpt(file, "gelu_new", rotary_dim=file.positive("rope.dimension_count"))


def starcoder(file: Metadata) -> Fields:
    """All heads share one key/value head."""
    file.expect("attention.head_count_kv", 1)
    return gpt(file, "gelu_pytorch_tanh", multi_query=True)


def gptneox(file: Metadata) -> Fields:
    fields = layer_norms(file, partial=True)
    del fields["num_key_value_heads"], fields["head_dim"]
    parallel = file.get("use_parallel_residual", default=True)
    bias = biases(file, attention_bias="attn_qkv")
    return fields | bias | {"use_parallel_residual": parallel, "hidden_act": "gelu"}


def falcon(file: Metadata) -> Fields:
    """Falcon 7B has one key/value head, or as many as heads. The other sizes have the newer architecture."""
    file.expect("tensor_data_layout", "jploski")
    fields = layer_norms(file, "layer_norm_epsilon")
    heads, kv_heads = fields["num_attention_heads"], fields.pop("num_key_value_heads")
    two_norms = file.has("blk.0.attn_norm_2.weight")
    newer = two_norms or kv_heads not in (1, heads)
    del fields["head_dim"], fields["hidden_act"]
    return biases(file, bias="attn_qkv") | {
        "num_kv_heads": kv_heads, "new_decoder_architecture": newer, "multi_query": kv_heads == 1, "alibi": False,
        "parallel_attn": True, "num_ln_in_parallel_attn": (1 + two_norms) if newer else None, "activation": "gelu",
        "ffn_hidden_size": fields.pop("intermediate_size"), **fields,
    }  # fmt: skip


def bloom(file: Metadata) -> Fields:
    names = {"width": "hidden_size", "layers": "n_layer", "heads": "n_head", "context": "seq_length"}
    fields = sizes(file, names)
    file.expect("feed_forward_length", 4 * fields["hidden_size"])
    file.expect("attention.max_alibi_bias", 8.0)
    return fields | eps(file, "layer_norm_epsilon", "layer")


def mpt(file: Metadata) -> Fields:
    names = {"width": "d_model", "layers": "n_layers", "heads": "n_heads", "context": "max_seq_len"}
    fields = sizes(file, names)
    file.expect("feed_forward_length", 4 * fields["d_model"])
    if (bias := file.get("attention.max_alibi_bias", default=0.0)) != 8.0:
        raise CheckpointError(f"mpt.attention.max_alibi_bias is {bias!r}; expected 8.0")
    attention = {"alibi": True, "alibi_bias_max": 8, "clip_qkv": file.get("attention.clamp_kqv")}
    return fields | eps(file, "layer_norm_epsilon", "layer") | {"attn_config": attention}
