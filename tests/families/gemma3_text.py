"""Gemma 3 (text)."""

from families.gemma2 import GEMMA

SIZES = {**GEMMA, "num_hidden_layers": 4, "sliding_window_pattern": 3}
CASES = [
    {},
    {"attention_bias": True, "tie_word_embeddings": False, "final_logit_softcapping": 3.0},
    {
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        },
        "query_pre_attn_scalar": 3,
        "rms_norm_eps": 0.1,
    },
    {"layer_types": ["full_attention", "sliding_attention"] * 2, "num_key_value_heads": 6, "sliding_window": 1},
]
PUBLISHED = {
    "gemma-3-1b-it": (999_885_952, {
        "model_type": "gemma3_text", "hidden_size": 1152, "intermediate_size": 6912, "eos_token_id": [1, 106],
        "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1, "vocab_size": 262144,
        "rope_local_base_freq": 10000, "rope_scaling": None, "rope_theta": 1000000, "sliding_window": 512,
        "sliding_window_pattern": 6,
    }),
    "gemma-3-270m": (268_098_176, {
        "model_type": "gemma3_text", "hidden_size": 640, "intermediate_size": 2048, "head_dim": 256,
        "num_attention_heads": 4, "num_hidden_layers": 18, "num_key_value_heads": 1, "vocab_size": 262144,
        "query_pre_attn_scalar": 256, "rope_local_base_freq": 10000.0, "rope_theta": 1000000.0,
        "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3, "use_bidirectional_attention": False,
        "sliding_window": 512,
    }),
}  # fmt: skip
