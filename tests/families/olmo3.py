"""OLMo 3."""

from families.common import LLAMA, ROPE, WIDE_HEADS, WINDOW, YARN

LOCAL, GLOBAL = "sliding_attention", "full_attention"
SIZES = {**LLAMA, "sliding_window": WINDOW}
CASES = [
    {"layer_types": [LOCAL, LOCAL, GLOBAL]},
    {"num_hidden_layers": 4, "attention_bias": True, "tie_word_embeddings": True, "hidden_act": "gelu"},
    {
        "layer_types": [GLOBAL, LOCAL, GLOBAL],
        "rope_parameters": {GLOBAL: YARN, LOCAL: {**ROPE, "rope_type": "default"}},
        **WIDE_HEADS,
        "num_key_value_heads": None,
    },
    {"layer_types": [LOCAL] * 3, "sliding_window": 1, "head_dim": 10, "rms_norm_eps": 0.1, "num_key_value_heads": 1},
]
REFUSED = [
    (
        {"rope_parameters": {GLOBAL: {**YARN, "truncate": False}, LOCAL: {**ROPE, "rope_type": "default"}}},
        "rope_parameters.full_attention.truncate is False; expected True: transformers ignores it",
    ),
]
PUBLISHED = {
    "Olmo-3-1025-7B": (7_298_011_136, {
        "model_type": "olmo3", "attention_bias": False, "hidden_act": "silu", "hidden_size": 4096,
        "intermediate_size": 11008, "layer_types": [LOCAL, LOCAL, LOCAL, GLOBAL] * 8,
        "max_position_embeddings": 65536, "num_attention_heads": 32, "num_hidden_layers": 32,
        "num_key_value_heads": 32, "rms_norm_eps": 1e-06, "rope_theta": 500000,
        "rope_scaling": {
            "attention_factor": 1.2079441541679836, "beta_fast": 32.0, "beta_slow": 1.0, "factor": 8.0,
            "original_max_position_embeddings": 8192, "rope_type": "yarn",
        },
        "sliding_window": 4096, "tie_word_embeddings": False, "vocab_size": 100278,
    }),
    "Olmo-3-1125-32B": (32_233_522_176, {
        "model_type": "olmo3", "attention_bias": False, "hidden_act": "silu", "hidden_size": 5120,
        "intermediate_size": 27648, "layer_types": [LOCAL, LOCAL, LOCAL, GLOBAL] * 16,
        "max_position_embeddings": 65536, "num_attention_heads": 40, "num_hidden_layers": 64,
        "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_theta": 500000, "sliding_window": 4096,
        "tie_word_embeddings": False, "vocab_size": 100278,
    }),
}  # fmt: skip
