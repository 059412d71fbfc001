"""Command R."""

from families.common import LLAMA, rope

SIZES = LLAMA
CASES = [
    {},
    {"use_qk_norm": True, "attention_bias": True, "logit_scale": 0.7},
    {"use_qk_norm": True, "num_key_value_heads": None, "tie_word_embeddings": False, "layer_norm_eps": 0.1},
    {"num_key_value_heads": 1, "head_dim": 12, "hidden_act": "gelu", **rope(rope_type="linear", factor=4.0)},
]
PUBLISHED = {
    "c4ai-command-r-v01": (34_980_831_232, {
        "model_type": "cohere", "attention_bias": False, "hidden_act": "silu", "hidden_size": 8192,
        "intermediate_size": 22528, "layer_norm_eps": 1e-05, "logit_scale": 0.0625, "max_position_embeddings": 8192,
        "model_max_length": 131072, "num_attention_heads": 64, "num_hidden_layers": 40, "num_key_value_heads": 64,
        "pretraining_tp": 1, "rope_theta": 8000000.0, "use_qk_norm": False, "vocab_size": 256000,
    }),
    "c4ai-command-r-plus": (103_810_674_688, {
        "model_type": "cohere", "attention_bias": False, "hidden_act": "silu", "hidden_size": 12288,
        "intermediate_size": 33792, "layer_norm_eps": 1e-05, "logit_scale": 0.8333333333333334,
        "max_position_embeddings": 8192, "model_max_length": 131072, "num_attention_heads": 96,
        "num_hidden_layers": 64, "num_key_value_heads": 8, "rope_theta": 75000000.0, "use_qk_norm": True,
        "vocab_size": 256000,
    }),
}  # fmt: skip
