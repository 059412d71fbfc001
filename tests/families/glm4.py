"""GLM-4-0414."""

from families.common import LLAMA, rope

SIZES = LLAMA
CASES = [
    {},
    {"attention_bias": False, "tie_word_embeddings": True, **rope(partial_rotary_factor=1.0), "hidden_act": "gelu"},
    {"num_key_value_heads": 6, "head_dim": 12, "rms_norm_eps": 0.1},
    {"num_key_value_heads": 1, **rope(rope_type="linear", factor=4.0, partial_rotary_factor=0.75)},
]
PUBLISHED = {
    "GLM-4-9B-0414": (9_400_279_040, {
        "model_type": "glm4", "attention_bias": True, "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096,
        "intermediate_size": 13696, "max_position_embeddings": 32768, "num_attention_heads": 32,
        "num_hidden_layers": 40, "num_key_value_heads": 2, "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0, "tie_word_embeddings": False, "vocab_size": 151552,
    }),
    "GLM-4-32B-0414": (32_566_081_536, {
        "model_type": "glm4", "attention_bias": False, "head_dim": 128, "hidden_act": "silu", "hidden_size": 6144,
        "intermediate_size": 23040, "max_position_embeddings": 32768, "num_attention_heads": 48,
        "num_hidden_layers": 61, "num_key_value_heads": 2, "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0, "tie_word_embeddings": False, "vocab_size": 151552,
    }),
}  # fmt: skip
