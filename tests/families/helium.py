"""Helium."""

from families.common import LLAMA, LLAMA3

SIZES = {**LLAMA, "hidden_size": 48}  # transformers' Helium needs a square output projection
CASES = [
    {},
    {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "rms_norm_eps": 0.1},
    {"num_key_value_heads": 6, "mlp_bias": True, "hidden_act": "gelu"},
    {"num_key_value_heads": 1, "attention_bias": True, "rope_parameters": LLAMA3},
]
PUBLISHED = {
    "helium-1-preview-2b": (2_172_643_840, {
        "model_type": "helium", "attention_bias": False, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2560,
        "intermediate_size": 7040, "max_position_embeddings": 4096, "mlp_bias": False, "num_attention_heads": 20,
        "num_hidden_layers": 24, "num_key_value_heads": 20, "pretraining_tp": 1, "rms_norm_eps": 1e-08,
        "rope_theta": 100000.0, "tie_word_embeddings": False, "vocab_size": 48000,
    }),
}  # fmt: skip
