"""Granite."""

from families.common import LLAMA, LLAMA3

SCALES = {"embedding_multiplier": 1.7, "attention_multiplier": 0.4, "residual_multiplier": 0.6, "logits_scaling": 3.0}
SIZES = {**LLAMA, **SCALES}
CASES = [
    {},
    {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "residual_multiplier": 1.0},
    {"embedding_multiplier": 12.0, "attention_multiplier": 0.2, "num_key_value_heads": None, "rms_norm_eps": 0.1},
    {"logits_scaling": 1.0, "num_key_value_heads": 1, "head_dim": 12, "rope_parameters": LLAMA3, "hidden_act": "gelu"},
]
REFUSED = [({"logits_scaling": 0.0}, "logits_scaling is 0.0; expected a number above zero")]
PUBLISHED = {
    "granite-3.0-2b-instruct": (2_533_531_648, {
        "model_type": "granite", "attention_bias": False, "attention_multiplier": 0.015625,
        "embedding_multiplier": 12.0, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 8192,
        "logits_scaling": 8.0, "max_position_embeddings": 4096, "mlp_bias": False, "num_attention_heads": 32,
        "num_hidden_layers": 40, "num_key_value_heads": 8, "residual_multiplier": 0.22, "rms_norm_eps": 1e-05,
        "rope_scaling": None, "rope_theta": 10000, "tie_word_embeddings": True, "vocab_size": 49155,
    }),
    "granite-3.0-8b-instruct": (8_170_848_256, {
        "model_type": "granite", "attention_bias": False, "attention_multiplier": 0.0078125,
        "embedding_multiplier": 12.0, "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 12800,
        "logits_scaling": 16.0, "max_position_embeddings": 4096, "mlp_bias": False, "num_attention_heads": 32,
        "num_hidden_layers": 40, "num_key_value_heads": 8, "residual_multiplier": 0.22, "rms_norm_eps": 1e-05,
        "rope_theta": 10000, "tie_word_embeddings": True, "vocab_size": 49155,
    }),
}  # fmt: skip
