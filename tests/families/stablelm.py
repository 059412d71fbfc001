"""StableLM."""

from families.common import DEFAULT_HEADS, LLAMA3, rope

SIZES = {**DEFAULT_HEADS, **rope(partial_rotary_factor=0.4)}
CASES = [
    {},
    {"qk_layernorm": True, "use_parallel_residual": True, "layer_norm_eps": 0.1, "tie_word_embeddings": True},
    {"use_qkv_bias": True, "num_key_value_heads": 6, **rope(partial_rotary_factor=1.0), "hidden_act": "gelu"},
    {"use_parallel_residual": True, "use_qkv_bias": True, **rope(partial_rotary_factor=0.6)},
    {
        "qk_layernorm": True,
        "use_qkv_bias": True,
        "num_key_value_heads": 1,
        "rope_parameters": {**LLAMA3, "partial_rotary_factor": 0.8},
    },
]
PUBLISHED = {
    "stablelm-3b-4e1t": (2_795_443_200, {
        "model_type": "stablelm", "hidden_act": "silu", "hidden_size": 2560, "intermediate_size": 6912,
        "layer_norm_eps": 1e-05, "max_position_embeddings": 4096, "num_attention_heads": 32, "num_hidden_layers": 32,
        "num_key_value_heads": 32, "partial_rotary_factor": 0.25, "rope_theta": 10000, "tie_word_embeddings": False,
        "use_qkv_bias": False, "vocab_size": 50304,
    }),
    "stablelm-2-1_6b": (1_644_515_328, {
        "model_type": "stablelm", "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 5632,
        "layer_norm_eps": 1e-05, "max_position_embeddings": 4096, "num_attention_heads": 32, "num_hidden_layers": 24,
        "num_key_value_heads": 32, "partial_rotary_factor": 0.25, "rope_theta": 10000, "tie_word_embeddings": False,
        "use_qkv_bias": True, "vocab_size": 100352,
    }),
    # the model card counts 41 more norms: a second one in each of 40 blocks, which parallel blocks lack, and another
    "stablelm-2-12b": (12_143_605_760 - 41 * 2 * 5120, {
        "model_type": "stablelm", "hidden_act": "silu", "hidden_size": 5120, "intermediate_size": 13824,
        "layer_norm_eps": 1e-05, "max_position_embeddings": 4096, "num_attention_heads": 32, "num_hidden_layers": 40,
        "num_key_value_heads": 8, "partial_rotary_factor": 0.25, "qk_layernorm": True, "rope_theta": 10000,
        "tie_word_embeddings": False, "use_parallel_residual": True, "use_qkv_bias": False, "vocab_size": 100352,
    }),
}  # fmt: skip
