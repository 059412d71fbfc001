"""EXAONE 4."""

from families.common import LLAMA, LLAMA3, WINDOW

LOCAL, GLOBAL = "sliding_attention", "full_attention"
SIZES = {**LLAMA, "sliding_window": WINDOW, "sliding_window_pattern": 2}
CASES = [
    {},
    {"sliding_window": None, "layer_types": [GLOBAL] * 3, "tie_word_embeddings": True, "hidden_act": "gelu"},
    {"layer_types": [GLOBAL, GLOBAL, LOCAL], "num_key_value_heads": 6, "rope_parameters": LLAMA3},
    {"layer_types": [GLOBAL] * 3, "num_key_value_heads": 1, "head_dim": 10, "rms_norm_eps": 0.1},
]
PUBLISHED = {
    "EXAONE-4.0-1.2B": (1_279_391_488, {
        "model_type": "exaone4", "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 4096,
        "layer_types": [GLOBAL] * 30, "max_position_embeddings": 65536, "num_attention_heads": 32,
        "num_hidden_layers": 30, "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 16.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3",
        },
        "rope_theta": 1000000, "sliding_window": None, "sliding_window_pattern": None, "tie_word_embeddings": True,
        "vocab_size": 102400,
    }),
    "EXAONE-4.0-32B": (32_003_216_384, {
        "model_type": "exaone4", "hidden_act": "silu", "hidden_size": 5120, "intermediate_size": 27392,
        "layer_types": [LOCAL, LOCAL, LOCAL, GLOBAL] * 16, "max_position_embeddings": 131072,
        "num_attention_heads": 40, "num_hidden_layers": 64, "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 16.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3",
        },
        "rope_theta": 1000000, "sliding_window": 4096, "sliding_window_pattern": "LLLG",
        "tie_word_embeddings": False, "vocab_size": 102400,
    }),
}  # fmt: skip
