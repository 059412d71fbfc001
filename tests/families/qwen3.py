"""Qwen 3."""

from families.common import LLAMA, LLAMA3, WINDOW

SIZES = LLAMA
CASES = [
    {},
    {"attention_bias": True, "tie_word_embeddings": True, "rms_norm_eps": 0.1},
    {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1, "num_key_value_heads": 6},
    {
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "rope_parameters": LLAMA3,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
]
PUBLISHED = {
    "DeepSeek-R1-0528-Qwen3-8B": (8_190_735_360, {
        "model_type": "qwen3", "attention_bias": False, "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096,
        "intermediate_size": 12288, "max_position_embeddings": 131072, "max_window_layers": 36,
        "num_attention_heads": 32, "num_hidden_layers": 36, "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
        "rope_scaling": {
            "attn_factor": 0.8782488562869419, "factor": 4.0, "original_max_position_embeddings": 32768,
            "rope_type": "yarn",
        },
        "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": False, "use_sliding_window": False,
        "vocab_size": 151936,
    }),
    "Qwen3-0.6B": (596_049_920, {
        "model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "max_window_layers": 28,
        "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8, "rope_theta": 1000000,
        "head_dim": 128, "tie_word_embeddings": True, "use_sliding_window": False, "sliding_window": None,
    }),
    "Qwen3-8B": (8_190_735_360, {
        "model_type": "qwen3", "hidden_size": 4096, "intermediate_size": 12288, "max_window_layers": 36,
        "num_attention_heads": 32, "num_hidden_layers": 36, "num_key_value_heads": 8, "rope_theta": 1000000,
        "head_dim": 128, "tie_word_embeddings": False, "use_sliding_window": False, "sliding_window": None,
    }),
}  # fmt: skip
