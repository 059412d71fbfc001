"""Nemotron."""

from families.common import LLAMA, LLAMA3, rope

SIZES = LLAMA
CASES = [
    {},
    {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "norm_eps": 0.1},
    {**rope(partial_rotary_factor=1.0), "num_key_value_heads": 6, "mlp_bias": True, "hidden_act": "gelu"},
    {"head_dim": None, "num_key_value_heads": 1, "rope_parameters": {**LLAMA3, "partial_rotary_factor": 0.7}},
    {**rope(partial_rotary_factor=0.25, rope_type="linear", factor=4.0), "attention_bias": True},
]
REFUSED = [({"rope_percent": 0.3}, "rope_percent is 0.3; expected 0.5: it must equal partial_rotary_factor")]
PUBLISHED = {
    "Minitron-4B-Base": (4_190_509_056, {
        "model_type": "nemotron", "attention_bias": False, "head_dim": 128, "hidden_act": "relu2",
        "hidden_size": 3072, "intermediate_size": 9216, "max_position_embeddings": 4096, "mlp_bias": False,
        "norm_eps": 1e-05, "num_attention_heads": 24, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "partial_rotary_factor": 0.5, "rope_theta": 10000.0, "tie_word_embeddings": False, "vocab_size": 256000,
    }),
    "Minitron-8B-Base": (8_271_699_968, {
        "model_type": "nemotron", "kv_channels": 128, "rope_percent": 0.5, "attention_bias": False, "head_dim": 128,
        "hidden_act": "relu2",
        "hidden_size": 4096, "intermediate_size": 16384, "max_position_embeddings": 4096, "mlp_bias": False,
        "norm_eps": 1e-05, "num_attention_heads": 48, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "partial_rotary_factor": 0.5, "rope_theta": 10000.0, "tie_word_embeddings": False, "vocab_size": 256000,
    }),
}  # fmt: skip
