"""OLMoE."""

from families.common import DEFAULT_HEADS, LLAMA3

SIZES = {**DEFAULT_HEADS, "intermediate_size": 20, "num_experts": 5, "num_experts_per_tok": 2}
CASES = [
    {},
    {"clip_qkv": 0.8, "attention_bias": True, "tie_word_embeddings": True, "rms_norm_eps": 0.1},
    {"norm_topk_prob": True, "num_key_value_heads": None, "num_experts_per_tok": 5, "hidden_act": "gelu"},
    {"num_key_value_heads": 1, "num_experts_per_tok": 1, "clip_qkv": 1.5, "rope_parameters": LLAMA3},
]
PUBLISHED = {
    "OLMoE-1B-7B-0924": (6_919_161_856, {
        "model_type": "olmoe", "attention_bias": False, "clip_qkv": None, "hidden_act": "silu", "hidden_size": 2048,
        "intermediate_size": 1024, "max_position_embeddings": 4096, "norm_topk_prob": False,
        "num_attention_heads": 16, "num_experts": 64, "num_experts_per_tok": 8, "num_hidden_layers": 16,
        "num_key_value_heads": 16, "output_router_logits": False, "rms_norm_eps": 1e-05, "rope_scaling": None,
        "rope_theta": 10000.0, "router_aux_loss_coef": 0.01, "tie_word_embeddings": False, "vocab_size": 50304,
    }),
}  # fmt: skip
