"""OLMo 2."""

from families.common import LLAMA, LLAMA3

SIZES = LLAMA
CASES = [
    {},
    {"attention_bias": True, "tie_word_embeddings": True, "hidden_act": "gelu"},
    {"num_key_value_heads": None, "head_dim": 10, "rms_norm_eps": 0.1},
    {"num_key_value_heads": 1, "rope_parameters": LLAMA3},
]
PUBLISHED = {
    "OLMo-2-0425-1B": (1_484_916_736, {
        "model_type": "olmo2", "attention_bias": False, "hidden_act": "silu", "hidden_size": 2048,
        "intermediate_size": 8192, "max_position_embeddings": 4096, "num_attention_heads": 16,
        "num_hidden_layers": 16, "num_key_value_heads": 16, "rms_norm_eps": 1e-06, "rope_scaling": None,
        "rope_theta": 500000, "tie_word_embeddings": False, "vocab_size": 100352,
    }),
    "OLMo-2-0325-32B": (32_234_279_936, {
        "model_type": "olmo2", "attention_bias": False, "hidden_act": "silu", "hidden_size": 5120,
        "intermediate_size": 27648, "max_position_embeddings": 4096, "num_attention_heads": 40,
        "num_hidden_layers": 64, "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_theta": 500000,
        "tie_word_embeddings": False, "vocab_size": 100352,
    }),
}  # fmt: skip
