"""ERNIE 4.5."""

from families.common import LLAMA, LLAMA3

SIZES = LLAMA
CASES = [
    {},
    {"use_bias": True, "tie_word_embeddings": False, "rms_norm_eps": 0.1},
    {"num_key_value_heads": None, "head_dim": None, "hidden_act": "gelu"},
    {"num_key_value_heads": 1, "use_bias": True, "rope_parameters": LLAMA3},
]
PUBLISHED = {
    "ERNIE-4.5-0.3B-PT": (360_748_032, {
        "model_type": "ernie4_5", "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024,
        "intermediate_size": 3072, "max_position_embeddings": 131072, "num_attention_heads": 16,
        "num_hidden_layers": 18, "num_key_value_heads": 2, "rms_norm_eps": 1e-05, "rope_theta": 500000,
        "tie_word_embeddings": True, "use_bias": False, "vocab_size": 103424,
    }),
}  # fmt: skip
