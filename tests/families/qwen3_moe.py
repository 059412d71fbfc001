"""Qwen 3 (mixture of experts)."""

from families.common import LLAMA, LLAMA3, WINDOW

SIZES = {**LLAMA, "moe_intermediate_size": 20, "num_experts": 5, "num_experts_per_tok": 2}
CASES = [
    {"norm_topk_prob": True},
    {"mlp_only_layers": [1], "attention_bias": True, "tie_word_embeddings": True, "rms_norm_eps": 0.1},
    {
        "decoder_sparse_step": 2,
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "num_key_value_heads": 6,
        "num_experts_per_tok": 1,
    },
    {"mlp_only_layers": [0, 2], "num_experts_per_tok": 5, "rope_parameters": LLAMA3, "hidden_act": "gelu"},
    {"decoder_sparse_step": 4, "norm_topk_prob": True},
]
REFUSED = [({"use_qk_norm": False}, "use_qk_norm is False; expected True: transformers' Qwen 3 MoE supports")]
PUBLISHED = {
    "Qwen3-Coder-30B-A3B-Instruct": (30_532_122_624, {
        "model_type": "qwen3_moe", "attention_bias": False, "decoder_sparse_step": 1, "head_dim": 128,
        "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 5472, "max_position_embeddings": 262144,
        "max_window_layers": 28, "mlp_only_layers": [], "moe_intermediate_size": 768, "norm_topk_prob": True,
        "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 48,
        "num_key_value_heads": 4, "output_router_logits": False, "qkv_bias": False, "rms_norm_eps": 1e-06,
        "rope_scaling": None, "rope_theta": 10000000, "router_aux_loss_coef": 0.0,
        "shared_expert_intermediate_size": 0, "sliding_window": None, "tie_word_embeddings": False,
        "use_qk_norm": True, "use_sliding_window": False, "vocab_size": 151936,
    }),
    "Qwen3-30B-A3B": (30_532_122_624, {
        "model_type": "qwen3_moe", "attention_bias": False, "decoder_sparse_step": 1, "head_dim": 128,
        "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 6144, "max_position_embeddings": 40960,
        "max_window_layers": 48, "mlp_only_layers": [], "moe_intermediate_size": 768, "norm_topk_prob": True,
        "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 48,
        "num_key_value_heads": 4, "output_router_logits": False, "rms_norm_eps": 1e-06, "rope_scaling": None,
        "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001, "sliding_window": None, "tie_word_embeddings": False,
        "use_sliding_window": False, "vocab_size": 151936,
    }),
    "Qwen3-235B-A22B": (235_093_634_560, {
        "model_type": "qwen3_moe", "attention_bias": False, "decoder_sparse_step": 1, "head_dim": 128,
        "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 12288, "max_position_embeddings": 40960,
        "max_window_layers": 94, "mlp_only_layers": [], "moe_intermediate_size": 1536, "norm_topk_prob": True,
        "num_attention_heads": 64, "num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 94,
        "num_key_value_heads": 4, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": None,
        "tie_word_embeddings": False, "use_sliding_window": False, "vocab_size": 151936,
    }),
}  # fmt: skip
