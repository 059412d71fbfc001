"""Gemma."""

from families.common import LLAMA, LLAMA3

SIZES = LLAMA
CASES = [
    {},
    {"attention_bias": True, "tie_word_embeddings": False, "hidden_act": "silu"},
    {"num_key_value_heads": 1, "rms_norm_eps": 0.1, "hidden_act": "gelu"},
    {"num_key_value_heads": 6, "head_dim": 10, "rope_parameters": LLAMA3},
]
REFUSED = [
    ({"use_bidirectional_attention": True}, "use_bidirectional_attention is True; expected False: jaxlens implements"),
    ({"hidden_activation": "silu"}, "hidden_activation is 'silu'; expected 'gelu_pytorch_tanh': it must equal"),
]
PUBLISHED = {
    "gemma-2b": (2_506_172_416, {
        "model_type": "gemma", "attention_bias": False, "head_dim": 256, "hidden_act": "gelu",
        "hidden_activation": None, "hidden_size": 2048, "intermediate_size": 16384, "max_position_embeddings": 8192,
        "num_attention_heads": 8, "num_hidden_layers": 18, "num_key_value_heads": 1, "rms_norm_eps": 1e-06,
        "rope_scaling": None, "rope_theta": 10000.0, "vocab_size": 256000,
    }),
    "gemma-7b": (8_537_680_896, {
        "model_type": "gemma", "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 3072, "intermediate_size": 24576,
        "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 16, "vocab_size": 256000,
    }),
}  # fmt: skip
