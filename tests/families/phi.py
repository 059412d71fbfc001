"""Phi."""

from families.common import DEFAULT_HEADS, rope

SIZES = {**DEFAULT_HEADS, **rope(partial_rotary_factor=0.4)}
CASES = [
    {},
    {"qk_layernorm": True, **rope(partial_rotary_factor=0.6), "layer_norm_eps": 0.1},
    {"tie_word_embeddings": True, "num_key_value_heads": None, "hidden_act": "relu"},
    {"qk_layernorm": True, "num_key_value_heads": 1, **rope(partial_rotary_factor=1.0), "hidden_act": "silu"},
    {
        "num_attention_heads": 15,
        "num_key_value_heads": 5,
        **rope(rope_type="linear", factor=4.0, partial_rotary_factor=0.5),
    },
]
PUBLISHED = {
    "phi-1_5": (1_418_270_720, {
        "model_type": "phi", "embd_pdrop": 0.0, "hidden_act": "gelu_new", "hidden_size": 2048,
        "intermediate_size": 8192, "layer_norm_eps": 1e-05, "max_position_embeddings": 2048,
        "num_attention_heads": 32, "num_hidden_layers": 24, "num_key_value_heads": None, "partial_rotary_factor": 0.5,
        "qk_layernorm": False, "resid_pdrop": 0.0, "rope_scaling": None, "rope_theta": 10000.0,
        "tie_word_embeddings": False, "vocab_size": 51200,
    }),
    "phi-2": (2_779_683_840, {
        "model_type": "phi", "embd_pdrop": 0.0, "hidden_act": "gelu_new", "hidden_size": 2560,
        "intermediate_size": 10240, "layer_norm_eps": 1e-05, "max_position_embeddings": 2048,
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32, "partial_rotary_factor": 0.4,
        "qk_layernorm": False, "resid_pdrop": 0.1, "rope_scaling": None, "rope_theta": 10000.0,
        "tie_word_embeddings": False, "vocab_size": 51200,
    }),
}  # fmt: skip
