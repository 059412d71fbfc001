"""Ministral."""

from families.common import LLAMA, LLAMA3, WINDOW

SIZES = {**LLAMA, "sliding_window": WINDOW}
CASES = [
    {},
    {"layer_types": ["full_attention"] * 3, "tie_word_embeddings": True, "hidden_act": "gelu"},
    {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"], "num_key_value_heads": 6},
    {
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
        "head_dim": 10,
        "rms_norm_eps": 0.1,
        "rope_parameters": LLAMA3,
    },
]
PUBLISHED = {
    # published as "mistral", without layer_types; every fourth layer is global
    "Ministral-8B-Instruct-2410": (8_019_808_256, {
        "model_type": "ministral", "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096,
        "intermediate_size": 12288, "layer_types": ["full_attention", *["sliding_attention"] * 3] * 9,
        "max_position_embeddings": 32768, "num_attention_heads": 32, "num_hidden_layers": 36,
        "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 100000000.0, "sliding_window": 32768,
        "tie_word_embeddings": False, "vocab_size": 131072,
    }),
}  # fmt: skip
