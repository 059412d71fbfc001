"""Ministral 3."""

from families.common import LLAMA, WIDE_HEADS, WINDOW, YARN

ROPE = {**YARN, "original_max_position_embeddings": 16, "llama_4_scaling_beta": 0.4, "max_position_embeddings": 64}
SIZES = {**LLAMA, "rope_parameters": ROPE}
CASES = [
    {},
    {"sliding_window": WINDOW, "tie_word_embeddings": True, "rms_norm_eps": 0.1},
    {**WIDE_HEADS, "rope_parameters": {**ROPE, "mscale": 1.0, "mscale_all_dim": 1.0}, "hidden_act": "gelu"},
    {"rope_parameters": {**ROPE, "llama_4_scaling_beta": 0.1, "factor": 16.0}, "num_key_value_heads": 6},
]
PUBLISHED = {
    "Ministral-3-8B (text model)": (8_489_553_920, {
        "model_type": "ministral3", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 34,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 131072,
    }),
    "Ministral-3-3B (text model)": (3_429_006_336, {  # the model card says 3.4 billion
        "model_type": "ministral3", "hidden_size": 3072, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 131072,
        "tie_word_embeddings": True,
    }),
}  # fmt: skip
