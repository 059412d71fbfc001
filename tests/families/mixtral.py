"""Mixtral."""

from families.common import LLAMA, LLAMA3, WINDOW

SIZES = {**LLAMA, "num_local_experts": 5, "num_experts_per_tok": 2}
CASES = [
    {},
    {"sliding_window": WINDOW, "tie_word_embeddings": True, "num_experts_per_tok": 1, "hidden_act": "gelu"},
    {"num_local_experts": 3, "num_experts_per_tok": 3, "num_key_value_heads": 6, "rms_norm_eps": 0.1},
    {"num_local_experts": 1, "num_experts_per_tok": 1, "head_dim": 10, "rope_parameters": LLAMA3},
]
PUBLISHED = {
    "Mixtral-8x7B-v0.1": (46_702_792_704, {
        "model_type": "mixtral", "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336,
        "max_position_embeddings": 32768, "num_attention_heads": 32, "num_experts_per_tok": 2,
        "num_hidden_layers": 32, "num_key_value_heads": 8, "num_local_experts": 8, "output_router_logits": False,
        "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.02, "sliding_window": None,
        "tie_word_embeddings": False, "vocab_size": 32000,
    }),
    "Mixtral-8x22B-Instruct-v0.1": (140_630_071_296, {
        "model_type": "mixtral", "hidden_act": "silu", "hidden_size": 6144, "intermediate_size": 16384,
        "max_position_embeddings": 65536, "num_attention_heads": 48, "num_experts_per_tok": 2,
        "num_hidden_layers": 56, "num_key_value_heads": 8, "num_local_experts": 8, "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0, "sliding_window": None, "tie_word_embeddings": False, "vocab_size": 32768,
    }),
}  # fmt: skip
