"""Phi 3."""

from families.common import LLAMA, LONGROPE, WINDOW, rope

SIZES = {**LLAMA, "hidden_size": 48}
CASES = [
    {},
    {"sliding_window": WINDOW, "tie_word_embeddings": True, "hidden_act": "gelu", "rms_norm_eps": 0.1},
    {**rope(partial_rotary_factor=0.5), "num_key_value_heads": None},
    {"rope_parameters": LONGROPE, "original_max_position_embeddings": 16},
    {
        "rope_parameters": {
            **LONGROPE,
            "partial_rotary_factor": 0.75,
            "short_factor": [1.0, 1.2, 1.4],
            "long_factor": [1.5, 3.0, 6.0],
        },
        "original_max_position_embeddings": 50,
        "num_key_value_heads": 1,
    },
]
REFUSED = [
    ({"attention_bias": True}, "attention_bias is True; expected False: transformers' Phi-3 has no biases"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; expected 1.0: it must equal rope_parameters"),
]
PUBLISHED = {
    "Phi-3-mini-4k-instruct": (3_821_079_552, {
        "model_type": "phi3", "attention_bias": False, "hidden_act": "silu", "hidden_size": 3072,
        "intermediate_size": 8192, "max_position_embeddings": 4096, "num_attention_heads": 32, "num_hidden_layers": 32,
        "num_key_value_heads": 32, "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-05,
        "rope_scaling": None, "rope_theta": 10000.0, "sliding_window": 2047, "tie_word_embeddings": False,
        "vocab_size": 32064,
    }),
    "Phi-4-mini-instruct": (3_836_021_760, {
        "model_type": "phi3", "attention_bias": False, "full_attn_mod": 1, "hidden_size": 3072,
        "intermediate_size": 8192, "interpolate_factor": 1, "lm_head_bias": False, "max_position_embeddings": 131072,
        "mlp_bias": False, "num_attention_heads": 24, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "original_max_position_embeddings": 4096, "partial_rotary_factor": 0.75, "rope_theta": 10000.0,
        "rope_scaling": {"type": "longrope", "long_factor": [2.0] * 48, "short_factor": [1.0] * 48},
        "sliding_window": 262144, "tie_word_embeddings": True, "vocab_size": 200064,
    }),
}  # fmt: skip
