"""Qwen 2 (mixture of experts)."""

from families.common import LLAMA, LLAMA3, WINDOW

SIZES = {
    **LLAMA,
    "moe_intermediate_size": 20,
    "shared_expert_intermediate_size": 28,
    "num_experts": 5,
    "num_experts_per_tok": 2,
}
CASES = [
    {"norm_topk_prob": True},
    {"mlp_only_layers": [1], "qkv_bias": False, "tie_word_embeddings": True, "rms_norm_eps": 0.1},
    {"decoder_sparse_step": 2, "use_sliding_window": True, "sliding_window": WINDOW, "num_key_value_heads": 6},
    {
        "mlp_only_layers": [0, 2],
        "num_experts_per_tok": 5,
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        "rope_parameters": LLAMA3,
        "hidden_act": "gelu",
    },
    {"num_experts_per_tok": 1, "num_key_value_heads": 1, "max_window_layers": 1, "sliding_window": WINDOW},
    {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1, "decoder_sparse_step": 3},
]
REFUSED = [
    ({"layer_types": ["sliding_attention"] * 3}, "expected a list of 'full_attention', one entry per layer"),
]
PUBLISHED = {
    "Qwen1.5-MoE-A2.7B": (14_315_784_192, {
        "model_type": "qwen2_moe", "decoder_sparse_step": 1, "hidden_act": "silu", "hidden_size": 2048,
        "intermediate_size": 5632, "max_position_embeddings": 8192, "max_window_layers": 21,
        "moe_intermediate_size": 1408, "norm_topk_prob": False, "num_attention_heads": 16, "num_experts": 60,
        "num_experts_per_tok": 4, "num_hidden_layers": 24, "num_key_value_heads": 16, "output_router_logits": False,
        "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001,
        "shared_expert_intermediate_size": 5632, "sliding_window": 32768, "tie_word_embeddings": False,
        "use_sliding_window": False, "vocab_size": 151936,
    }),
    "Qwen2-57B-A14B": (57_408_658_944, {
        "model_type": "qwen2_moe", "decoder_sparse_step": 1, "hidden_act": "silu", "hidden_size": 3584,
        "intermediate_size": 18944, "max_position_embeddings": 131072, "max_window_layers": 28,
        "mlp_only_layers": [], "moe_intermediate_size": 2560, "norm_topk_prob": False, "num_attention_heads": 28,
        "num_experts": 64, "num_experts_per_tok": 8, "num_hidden_layers": 28, "num_key_value_heads": 4,
        "output_router_logits": False, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001,
        "shared_expert_intermediate_size": 20480, "sliding_window": 65536, "tie_word_embeddings": False,
        "use_sliding_window": False, "vocab_size": 151936,
    }),
}  # fmt: skip
