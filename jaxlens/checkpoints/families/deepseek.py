"""DeepSeek V2 and V3 (and R1): latent attention, dense first layers, then experts in groups and a shared expert."""

import functools
import math
from collections.abc import Iterator
from dataclasses import replace

from jaxlens.checkpoints.rules import Family, Reader, Rule
from jaxlens.checkpoints.rules.config_helpers import llama_config, rotary_embedding, yarn_mscale
from jaxlens.checkpoints.rules.tensor_rules import (
    LAYER,
    expert_layers,
    expert_rules,
    gated_mlp_rules,
    llama_rules,
    shared_expert_rules,
)
from jaxlens.config import Config

FIXED_ROUTER_FIELDS = {
    "deepseek_v2": {"scoring_func": "softmax", "norm_topk_prob": False},
    "deepseek_v3": {"scoring_func": "sigmoid", "topk_method": "noaux_tc"},
}
"""Fields of the published files that transformers does not read. It implements these values."""


def config(hf: Reader) -> Config:
    for name, value in {**FIXED_ROUTER_FIELDS[hf("model_type")], "moe_layer_freq": 1, "mlp_bias": False}.items():
        hf.expect(name, value, because="transformers' DeepSeek supports no other value")
    hf.expect("attention_bias", False, because="jaxlens's latent attention has no biases")
    rotated, unrotated, n_heads = (hf.size(f) for f in ("qk_rope_head_dim", "qk_nope_head_dim", "num_attention_heads"))
    d_head = unrotated + rotated
    hf.expect("head_dim", rotated, None, because="it must equal qk_rope_head_dim")
    hf.expect("qk_head_dim", d_head, None, because="it must equal qk_nope_head_dim + qk_rope_head_dim")
    hf.expect("num_key_value_heads", n_heads, None, because="latent attention has one key per query head")
    n_dense, d_expert = hf("first_k_dense_replace"), hf.size("moe_intermediate_size")
    is_v3 = hf("model_type") == "deepseek_v3"
    return llama_config(
        hf, n_key_value_heads=n_heads, d_head=d_head, d_v_head=hf.size("v_head_dim"),
        kv_lora_rank=hf.size("kv_lora_rank"), q_lora_rank=hf.size("q_lora_rank", None),
        rotary=replace(rotary_embedding(hf, adjacent_pairs=not is_v3 or hf.flag("rope_interleave")), dim=rotated),
        attn_scale=math.sqrt(d_head) / score_mscale(hf) ** 2, num_experts=hf.size("n_routed_experts"),
        experts_per_token=hf.size("num_experts_per_tok"),
        moe_layers=tuple(layer >= n_dense for layer in range(hf.size("num_hidden_layers"))), d_expert=d_expert,
        d_shared_expert=d_expert * hf.size("n_shared_experts"), router_scale=hf.positive("routed_scaling_factor"),
        **(v3_router(hf) if is_v3 else v2_router(hf)),
    )  # fmt: skip


def score_mscale(hf: Reader) -> float:
    """DeepSeek's factor on queries and keys, in addition to that of YaRN."""
    rope = hf.inside("rope_parameters")
    weight = rope.number("mscale_all_dim", 0)
    is_scaled = rope("rope_type", "default") != "default" and weight
    return yarn_mscale(rope.positive("factor"), weight) if is_scaled else 1.0


def v2_router(hf: Reader) -> dict:
    method = hf("topk_method")
    if method not in ("greedy", "group_limited_greedy"):
        raise hf.refused("topk_method", "expected greedy or group_limited_greedy")
    is_limited = method == "group_limited_greedy"
    n, used = (hf.size(name) if is_limited else hf(name, None) for name in ("n_group", "topk_group"))
    return {"norm_topk_prob": False, "router_groups": (n, used) if is_limited else None}


def v3_router(hf: Reader) -> dict:
    groups = hf.size("n_group"), hf.size("topk_group")
    fields = {"router": "sigmoid", "router_groups": groups, "biases": ("b_choice",)}
    return {**fields, "norm_topk_prob": hf.flag("norm_topk_prob")}


def attention_rules(cfg: Config) -> Iterator[Rule]:
    theirs, ours = LAYER + "self_attn.", "blocks.{l}.attn."
    if cfg.q_lora_rank is None:
        yield Rule(theirs + "q_proj.weight", ours + "W_Q", "(n h) d -> n d h")
    else:
        yield Rule(theirs + "q_a_proj.weight", ours + "W_Q_down", "r d -> d r")
        yield Rule(theirs + "q_a_layernorm.weight", ours + "q_latent_norm.w", "r")
        yield Rule(theirs + "q_b_proj.weight", ours + "W_Q", "(n h) r -> n r h")
    fused = (ours + "W_KV_down", ours + "W_K_rot")
    yield Rule(theirs + "kv_a_proj_with_mqa.weight", fused, "both d -> both d", ("z", "j"), "both d -> d both")
    yield Rule(theirs + "kv_a_layernorm.weight", ours + "kv_latent_norm.w", "z")
    fused = (ours + "W_K", ours + "W_V")
    yield Rule(theirs + "kv_b_proj.weight", fused, "(n both) z -> both n z", ("y", "t"), "both n z -> n z both")
    yield Rule(theirs + "o_proj.weight", ours + "W_O", "d (n t) -> n t d")


def mlp_rules(cfg: Config) -> Iterator[Rule]:
    yield from gated_mlp_rules(cfg)
    yield from expert_rules(cfg)
    if "b_choice" in cfg.biases:
        theirs, ours = LAYER + "mlp.gate.e_score_correction_bias", "blocks.{l}.mlp.b_choice"
        yield Rule(theirs, ours, "e", layers=expert_layers(cfg))
    yield from shared_expert_rules(cfg, LAYER + "mlp.shared_experts.")


FAMILY = Family(
    model_types=("deepseek_v2", "deepseek_v3"),
    config=config,
    rules=functools.partial(llama_rules, attention=attention_rules, mlp=mlp_rules),
    unused=(
        *("output_router_logits", "aux_loss_alpha", "seq_aux", "ep_size"),
        *("num_nextn_predict_layers", "num_mtp_layers"),  # layers that predict the tokens after the next
    ),
    ignored=("model.layers.61.*",),  # V3's layer that predicts the token after next
)
