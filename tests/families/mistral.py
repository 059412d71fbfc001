"""Mistral."""

from families.common import LLAMA, LLAMA3, WINDOW

SIZES = {**LLAMA, "sliding_window": WINDOW}
CASES = [
    {},
    {"sliding_window": None, "tie_word_embeddings": True},
    {"sliding_window": 1, "num_key_value_heads": 6, "hidden_act": "relu"},
    {"sliding_window": 39, "head_dim": None, "rms_norm_eps": 0.1, "rope_parameters": LLAMA3},
]
PUBLISHED = {
    "Mistral-7B-v0.1": (7_241_732_096, {
        "model_type": "mistral", "max_position_embeddings": 32768, "rope_theta": 10000.0, "rms_norm_eps": 1e-5,
        "sliding_window": 4096, "tie_word_embeddings": False,
    }),
    "Mistral-Nemo-Base-2407": (12_247_782_400, {
        "model_type": "mistral", "max_position_embeddings": 131072, "rope_theta": 1000000.0, "rms_norm_eps": 1e-5,
        "sliding_window": None, "hidden_size": 5120, "head_dim": 128, "num_attention_heads": 32, "vocab_size": 131072,
        "num_hidden_layers": 40, "num_key_value_heads": 8, "intermediate_size": 14336, "tie_word_embeddings": False,
    }),
}  # fmt: skip
