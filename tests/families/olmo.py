"""OLMo (1)."""

from families.common import LLAMA, LLAMA3

SIZES = LLAMA
CASES = [
    {},
    {"clip_qkv": 0.8, "attention_bias": True, "tie_word_embeddings": True},
    {"num_key_value_heads": None, "hidden_act": "gelu", "clip_qkv": 8.0},
    {"num_key_value_heads": 1, "head_dim": 12, "rope_parameters": LLAMA3},
]
PUBLISHED = {
    "OLMo-1B-hf": (1_176_764_416, {
        "model_type": "olmo", "attention_bias": False, "clip_qkv": None, "hidden_act": "silu", "hidden_size": 2048,
        "intermediate_size": 8192, "max_position_embeddings": 2048, "num_attention_heads": 16,
        "num_hidden_layers": 16, "num_key_value_heads": 16, "pretraining_tp": 1, "rope_scaling": None,
        "rope_theta": 10000.0, "tie_word_embeddings": True, "vocab_size": 50304,
    }),
    "OLMo-7B-Twin-2T-hf": (6_888_095_744, {
        "model_type": "olmo", "attention_bias": False, "clip_qkv": None, "hidden_act": "silu", "hidden_size": 4096,
        "intermediate_size": 11008, "max_position_embeddings": 2048, "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 32, "rope_theta": 10000.0, "tie_word_embeddings": False,
        "vocab_size": 50304,
    }),
}  # fmt: skip
