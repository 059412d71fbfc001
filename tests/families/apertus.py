"""Apertus."""

from families.common import LLAMA, LLAMA3, rope

SIZES = {**LLAMA, "rope_parameters": LLAMA3}
CASES = [
    {},
    {"attention_bias": True, "tie_word_embeddings": True, "hidden_act": "relu2", **rope(rope_type="default")},
    {"num_key_value_heads": None, "head_dim": 10, "rms_norm_eps": 0.1},
    {"num_key_value_heads": 1, "attention_bias": True, **rope(rope_type="linear", factor=2.0)},
]
REFUSED = [({"post_norm": True}, "post_norm is True; expected False: transformers' Apertus supports no other value")]
PUBLISHED = {
    "Apertus-8B-2509": (8_053_338_176, {
        "model_type": "apertus", "attention_bias": False, "hidden_act": "xielu", "hidden_dropout": 0.0,
        "hidden_size": 4096, "intermediate_size": 21504, "max_position_embeddings": 65536, "mlp_bias": False,
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "post_norm": False,
        "qk_norm": True, "rms_norm_eps": 1e-05,
        "rope_scaling": {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                         "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        "rope_theta": 12000000, "tie_word_embeddings": False, "vocab_size": 131072,
    }),
    "Apertus-70B-2509": (70_599_864_480, {
        "model_type": "apertus", "attention_bias": False, "hidden_act": "xielu", "hidden_dropout": 0.0,
        "hidden_size": 8192, "intermediate_size": 43008, "max_position_embeddings": 65536, "mlp_bias": False,
        "num_attention_heads": 64, "num_hidden_layers": 80, "num_key_value_heads": 8, "post_norm": False,
        "qk_norm": True, "rms_norm_eps": 1e-05,
        "rope_scaling": {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                         "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        "rope_theta": 12000000, "tie_word_embeddings": False, "vocab_size": 131072,
    }),
}  # fmt: skip
"""The counts do not include 64 and 160 tensors of one number, the constants of the activations."""
