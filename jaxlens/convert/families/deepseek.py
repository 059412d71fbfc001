"""DeepSeek V2 and V3 (and R1): latent attention, dense first layers, then experts in groups beside a shared one."""

import functools
import math
from collections.abc import Iterator
from dataclasses import replace

from jaxlens.config import Config
from jaxlens.convert.common import llama_config, rotary
from jaxlens.convert.layouts import LAYER, expert_rules, gated_mlp_rules, llama_rules
from jaxlens.convert.reader import Reader
from jaxlens.convert.rules import Family, Rule

ONLY = {
    "deepseek_v2": {"scoring_func": "softmax", "norm_topk_prob": False},
    "deepseek_v3": {"scoring_func": "sigmoid", "topk_method": "noaux_tc"},
}
"""What the published files say of the routers, and transformers does not look at."""


def config(hf: Reader) -> Config:
    for name, value in {**ONLY[hf("model_type")], "moe_layer_freq": 1, "mlp_bias": False}.items():
        hf.expect(name, value, because="transformers knows no other")
    hf.expect("attention_bias", False, because="no published model has biases beside its latents")
    turning, still, n_heads = hf.size("qk_rope_head_dim"), hf.size("qk_nope_head_dim"), hf.size("num_attention_heads")
    hf.expect("head_dim", turning, None, because="it is qk_rope_head_dim")
    hf.expect("qk_head_dim", still + turning, None, because="it is qk_nope_head_dim + qk_rope_head_dim")
    hf.expect("num_key_value_heads", n_heads, None, because="every head has a key of its own")
    dense, width, shared = hf("first_k_dense_replace"), hf.size("moe_intermediate_size"), hf.size("n_shared_experts")
    third = hf("model_type") == "deepseek_v3"
    return llama_config(
        hf,
        n_key_value_heads=n_heads,
        d_head=still + turning,
        d_v_head=hf.size("v_head_dim"),
        kv_lora_rank=hf.size("kv_lora_rank"),
        q_lora_rank=hf.size("q_lora_rank", None),
        rotary=replace(rotary(hf, adjacent_pairs=not third or hf.flag("rope_interleave")), dim=turning),
        attn_scale=math.sqrt(still + turning) / warmth(hf) ** 2,
        num_experts=hf.size("n_routed_experts"),
        experts_per_token=hf.size("num_experts_per_tok"),
        moe_layers=tuple(layer >= dense for layer in range(hf.size("num_hidden_layers"))),
        d_expert=width,
        d_shared_expert=width * shared,
        router_scale=hf.positive("routed_scaling_factor"),
        **(third_router(hf) if third else second_router(hf)),
    )


def warmth(hf: Reader) -> float:
    """What queries and keys are multiplied by in scores, besides YaRN's own factor."""
    rope = hf.inside("rope_parameters")
    weight = rope.number("mscale_all_dim", 0)
    stretched = rope("rope_type", "default") != "default" and weight and rope.positive("factor") > 1
    return 0.1 * weight * math.log(rope.positive("factor")) + 1 if stretched else 1.0


def second_router(hf: Reader) -> dict:
    method = hf("topk_method")
    if method not in ("greedy", "group_limited_greedy"):
        raise hf.refused("topk_method", "greedy or group_limited_greedy is wanted")
    groups = hf("n_group", None), hf("topk_group", None)
    return {"norm_topk_prob": False, "router_groups": groups if method == "group_limited_greedy" else None}


def third_router(hf: Reader) -> dict:
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
    both = (ours + "W_KV_down", ours + "W_K_rot")
    yield Rule(theirs + "kv_a_proj_with_mqa.weight", both, "both d -> both d", ("z", "j"), "both d -> d both")
    yield Rule(theirs + "kv_a_layernorm.weight", ours + "kv_latent_norm.w", "z")
    both = (ours + "W_K", ours + "W_V")
    yield Rule(theirs + "kv_b_proj.weight", both, "(n both) z -> both n z", ("y", "t"), "both n z -> n z both")
    yield Rule(theirs + "o_proj.weight", ours + "W_O", "d (n t) -> n t d")


def mlp_rules(cfg: Config) -> Iterator[Rule]:
    mixing = tuple(layer for layer, mixes in enumerate(cfg.moe_layers) if mixes)
    yield from gated_mlp_rules(cfg)
    yield from expert_rules(cfg)
    if "b_choice" in cfg.biases:
        yield Rule(LAYER + "mlp.gate.e_score_correction_bias", "blocks.{l}.mlp.b_choice", "e", layers=mixing)
    wide, narrow = "x d -> d x", "d x -> x d"
    for theirs, ours, pattern in (("gate", "gate", wide), ("up", "in", wide), ("down", "out", narrow)):
        name = f"{LAYER}mlp.shared_experts.{theirs}_proj.weight"
        yield Rule(name, f"blocks.{{l}}.mlp.shared.W_{ours}", pattern, layers=mixing)


FAMILY = Family(
    model_types=("deepseek_v2", "deepseek_v3"),
    config=config,
    rules=functools.partial(llama_rules, attention=attention_rules, mlp=mlp_rules),
    unused=(
        *("output_router_logits", "aux_loss_alpha", "seq_aux", "ep_size"),
        *("num_nextn_predict_layers", "num_mtp_layers"),  # layers that predict further tokens
    ),
    ignored=("model.layers.61.*",),  # V3's layer that predicts the token after next
)
