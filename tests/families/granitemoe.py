"""Granite (mixture of experts)."""

from families.common import LLAMA, LLAMA3
from families.granite import SCALES

SIZES = {**LLAMA, **SCALES, "intermediate_size": 20, "num_local_experts": 5}
CASES = [
    {},
    {"attention_bias": True, "num_experts_per_tok": 1, "tie_word_embeddings": True, "residual_multiplier": 1.0},
    {"num_experts_per_tok": 5, "attention_multiplier": 0.2, "num_key_value_heads": None, "rms_norm_eps": 0.1},
    {"num_local_experts": 3, "num_key_value_heads": 1, "rope_parameters": LLAMA3, "hidden_act": "gelu"},
]
PUBLISHED = {
    "granite-3.0-1b-a400m-instruct": (1_334_628_352, {
        "model_type": "granitemoe", "attention_bias": False, "attention_multiplier": 0.015625,
        "embedding_multiplier": 12.0, "hidden_act": "silu", "hidden_size": 1024, "intermediate_size": 512,
        "logits_scaling": 6.0, "max_position_embeddings": 4096, "num_attention_heads": 16,
        "num_experts_per_tok": 8, "num_hidden_layers": 24, "num_key_value_heads": 8, "num_local_experts": 32,
        "output_router_logits": False, "residual_multiplier": 0.22, "rms_norm_eps": 1e-06, "rope_theta": 10000,
        "router_aux_loss_coef": 0.001, "tie_word_embeddings": True, "vocab_size": 49155,
    }),
    "granite-3.0-3b-a800m-instruct": (3_298_793_472, {
        "model_type": "granitemoe", "attention_bias": False, "attention_multiplier": 0.015625,
        "embedding_multiplier": 12.0, "hidden_act": "silu", "hidden_size": 1536, "intermediate_size": 512,
        "logits_scaling": 6.0, "max_position_embeddings": 4096, "num_attention_heads": 24,
        "num_experts_per_tok": 8, "num_hidden_layers": 32, "num_key_value_heads": 8, "num_local_experts": 40,
        "residual_multiplier": 0.22, "rms_norm_eps": 1e-06, "rope_theta": 10000, "tie_word_embeddings": True,
        "vocab_size": 49155,
    }),
}  # fmt: skip
