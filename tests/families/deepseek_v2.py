"""DeepSeek V2."""

from families.common import LLAMA, YARN

SIZES = {
    **{name: value for name, value in LLAMA.items() if name not in ("head_dim", "num_key_value_heads")},
    "kv_lora_rank": 20, "q_lora_rank": 12, "qk_rope_head_dim": 8, "qk_nope_head_dim": 6, "v_head_dim": 10,
    "n_routed_experts": 6, "num_experts_per_tok": 2, "n_shared_experts": 2, "moe_intermediate_size": 12,
    "first_k_dense_replace": 1,
}  # fmt: skip
GROUPS = {"topk_method": "group_limited_greedy", "n_group": 3, "topk_group": 2}
CASES = [
    {},
    {"q_lora_rank": None, "first_k_dense_replace": 0, "routed_scaling_factor": 1.7, "tie_word_embeddings": True},
    {**GROUPS, "rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.7}, "n_shared_experts": 1},
    {**GROUPS, "first_k_dense_replace": 2, "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.7}},
]
REFUSED = [
    ({"attention_bias": True}, "attention_bias is True"),
    ({"topk_method": "noaux_tc"}, "expected greedy or group_limited_greedy"),
    ({**GROUPS, "n_group": None}, "config.json has no n_group, which this architecture needs"),
    ({"norm_topk_prob": True}, "norm_topk_prob is True; expected False: transformers' DeepSeek"),
    ({"moe_layer_freq": 2}, "moe_layer_freq is 2; expected 1"),
]
V2_LITE = {
    "model_type": "deepseek_v2", "vocab_size": 102400, "hidden_size": 2048, "intermediate_size": 10944,
    "moe_intermediate_size": 1408, "num_hidden_layers": 27, "num_attention_heads": 16, "num_key_value_heads": 16,
    "n_shared_experts": 2, "n_routed_experts": 64, "num_experts_per_tok": 6, "first_k_dense_replace": 1,
    "kv_lora_rank": 512, "q_lora_rank": None, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128,
    "n_group": 1, "topk_group": 1, "topk_method": "greedy", "scoring_func": "softmax", "moe_layer_freq": 1,
    "rope_theta": 10000, "max_position_embeddings": 163840, "rope_scaling": {
        "type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1,
        "mscale": 0.707, "mscale_all_dim": 0.707,
    },
}  # fmt: skip
V2 = {
    **V2_LITE, "hidden_size": 5120, "intermediate_size": 12288, "moe_intermediate_size": 1536, "num_hidden_layers": 60,
    "num_attention_heads": 128, "num_key_value_heads": 128, "n_routed_experts": 160, "q_lora_rank": 1536,
    "n_group": 8, "topk_group": 3, "topk_method": "group_limited_greedy", "routed_scaling_factor": 16.0,
}  # fmt: skip
PUBLISHED = {"DeepSeek-V2-Lite": (15_706_484_224, V2_LITE), "DeepSeek-V2": (235_741_434_880, V2)}
