"""GLM-4."""

from families.common import LLAMA, rope

SIZES = LLAMA
CASES = [
    {},
    {"attention_bias": False, "tie_word_embeddings": True, **rope(partial_rotary_factor=1.0), "hidden_act": "gelu"},
    {"num_key_value_heads": 6, "head_dim": 12, "rms_norm_eps": 0.1},
    {"num_key_value_heads": 1, **rope(rope_type="linear", factor=4.0, partial_rotary_factor=0.75)},
]
PUBLISHED = {
    "glm-4-9b-chat-hf": (9_399_951_360, {
        "model_type": "glm", "attention_bias": True, "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096,
        "intermediate_size": 13696, "max_position_embeddings": 131072, "num_attention_heads": 32,
        "num_hidden_layers": 40, "num_key_value_heads": 2, "partial_rotary_factor": 0.5, "rms_norm_eps": 1.5625e-07,
        "rope_theta": 10000.0, "tie_word_embeddings": False, "vocab_size": 151552,
    }),
    "glm-4-9b-chat-1m-hf": (9_483_857_920, {  # the model card says 9.48 billion
        "model_type": "glm", "attention_bias": True, "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096,
        "intermediate_size": 13696, "max_position_embeddings": 1048576, "num_attention_heads": 32,
        "num_hidden_layers": 40, "num_key_value_heads": 4, "partial_rotary_factor": 0.5, "rms_norm_eps": 1.5625e-07,
        "rope_theta": 100000000.0, "tie_word_embeddings": False, "vocab_size": 151552,
    }),
}  # fmt: skip
