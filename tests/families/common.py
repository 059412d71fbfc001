"""Sizes and rotary scalings that the cases of several families use.

The sizes are unusual on purpose. The number of heads is not a power of two, the heads together are wider than the
residual stream, and each key head has three query heads.
"""

WINDOW = 7
"""Shorter than every test sequence."""

LLAMA = {
    "vocab_size": 61,
    "hidden_size": 36,
    "intermediate_size": 44,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
DEFAULT_HEADS = {**{name: size for name, size in LLAMA.items() if name != "head_dim"}, "hidden_size": 60}
"""`LLAMA` with the default head_dim: the heads together are as wide as the residual stream."""
ROPE = {"rope_theta": 500.0}
YARN = {"rope_theta": 1e4, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
WIDE_HEADS = {"head_dim": 16}
LONGROPE = {
    **ROPE,
    "rope_type": "longrope",
    "original_max_position_embeddings": 16,
    "short_factor": [1.0, 1.1, 1.3, 1.7],
    "long_factor": [1.5, 2.0, 4.0, 8.0],
}
LLAMA3 = {
    **ROPE,
    "rope_type": "llama3",
    "factor": 8.0,
    "original_max_position_embeddings": 16,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}


def rope(**parameters):
    return {"rope_parameters": {**ROPE, **parameters}}
