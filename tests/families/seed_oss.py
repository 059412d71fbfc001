"""Seed-OSS."""

from families.common import LLAMA, WIDE_HEADS, YARN

SIZES = LLAMA
CASES = [
    {},
    {"attention_bias": False, "attention_out_bias": True, "tie_word_embeddings": True, "rms_norm_eps": 0.1},
    {"attention_out_bias": True, "mlp_bias": True, "num_key_value_heads": None, "head_dim": None},
    {"attention_bias": False, "num_key_value_heads": 1, "hidden_act": "gelu", **WIDE_HEADS, "rope_parameters": YARN},
]
PUBLISHED = {
    "Seed-OSS-36B-Instruct": (36_151_104_512, {
        "model_type": "seed_oss", "attention_bias": True, "attention_out_bias": False, "head_dim": 128,
        "hidden_act": "silu", "hidden_size": 5120, "intermediate_size": 27648, "max_position_embeddings": 524288,
        "mlp_bias": False, "num_attention_heads": 80, "num_hidden_layers": 64, "num_key_value_heads": 8,
        "pretraining_tp": 1, "residual_dropout": 0.1, "rms_norm_eps": 1e-06, "rope_scaling": {"rope_type": "default"},
        "rope_theta": 10000000.0, "tie_word_embeddings": False, "vocab_size": 155136,
    }),
}  # fmt: skip
