"""SmolLM 3."""

from families.common import LLAMA, WIDE_HEADS, WINDOW, YARN

SIZES = {**LLAMA, "no_rope_layer_interval": 2}
CASES = [
    {},
    {"no_rope_layers": [0, 0, 1], "attention_bias": True, "tie_word_embeddings": False, "rms_norm_eps": 0.1},
    {"use_sliding_window": True, "sliding_window": WINDOW, "mlp_bias": True, "num_key_value_heads": None},
    {
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
        "no_rope_layers": [1, 1, 1],
        **WIDE_HEADS,
        "rope_parameters": YARN,
    },
    {"no_rope_layers": [0, 0, 0], "hidden_act": "gelu"},
]
REFUSED = [
    ({"no_rope_layers": [1, 2, 0]}, "no_rope_layers is [1, 2, 0]; expected a list of 1 and 0"),
    ({"no_rope_layers": [1, 0]}, "rotary has 2 entries; expected one value, or one for each of 3 layers"),
]
PUBLISHED = {
    "SmolLM3-3B": (3_075_098_624, {
        "model_type": "smollm3", "attention_bias": False, "hidden_act": "silu", "hidden_size": 2048,
        "intermediate_size": 11008, "layer_types": ["full_attention"] * 36, "max_position_embeddings": 65536,
        "max_window_layers": 28, "mlp_bias": False, "no_rope_layer_interval": 4, "no_rope_layers": [1, 1, 1, 0] * 9,
        "num_attention_heads": 16, "num_hidden_layers": 36, "num_key_value_heads": 4, "pretraining_tp": 2,
        "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 5000000.0, "sliding_window": None,
        "use_sliding_window": False, "vocab_size": 128256,
    }),
}  # fmt: skip
