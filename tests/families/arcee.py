"""Arcee."""

from families.common import LLAMA, LLAMA3, WIDE_HEADS, YARN

SIZES = LLAMA
CASES = [
    {},
    {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "rms_norm_eps": 0.1},
    {"num_key_value_heads": None, "head_dim": None, "mlp_bias": True, "hidden_act": "gelu"},
    {**WIDE_HEADS, "rope_parameters": YARN, "attention_bias": True},
    {"num_key_value_heads": 1, "rope_parameters": LLAMA3},
]
PUBLISHED = {
    "AFM-4.5B": (4_619_184_640, {
        "model_type": "arcee", "attention_bias": False, "head_dim": 128, "hidden_act": "relu2", "hidden_size": 2560,
        "intermediate_size": 18432, "max_position_embeddings": 65536, "mlp_bias": False, "num_attention_heads": 20,
        "num_hidden_layers": 36, "num_key_value_heads": 4, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
        "rope_scaling": {
            "rope_type": "yarn", "factor": 20.0, "original_max_position_embeddings": 4096, "beta_fast": 32.0,
            "beta_slow": 1.0, "mscale": 1.0,
        },
        "tie_word_embeddings": False, "vocab_size": 128004,
    }),
}  # fmt: skip
