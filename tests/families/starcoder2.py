"""StarCoder 2."""

from families.common import LLAMA, LLAMA3, WINDOW

SIZES = {**LLAMA, "sliding_window": WINDOW}
CASES = [
    {},
    {"use_bias": False, "sliding_window": None, "tie_word_embeddings": False},
    {"num_key_value_heads": 6, "hidden_act": "gelu", "norm_epsilon": 0.1, "sliding_window": 1},
    {"head_dim": None, "num_key_value_heads": 1, "rope_parameters": LLAMA3},
]
REFUSED = [
    ({"mlp_type": "gated"}, "mlp_type is 'gated'; expected 'default': transformers' StarCoder 2 supports no other"),
    ({"norm_type": "rms_norm"}, "norm_type is 'rms_norm'; expected 'layer_norm'"),
]
PUBLISHED = {
    "starcoder2-3b": (3_030_371_328, {
        "model_type": "starcoder2", "activation_function": "gelu", "attention_softmax_in_fp32": True,
        "scale_attention_softmax_in_fp32": True, "scale_attn_weights": True,
        "hidden_act": "gelu_pytorch_tanh", "hidden_size": 3072, "intermediate_size": 12288,
        "max_position_embeddings": 16384, "mlp_type": "default", "norm_epsilon": 1e-05, "norm_type": "layer_norm",
        "num_attention_heads": 24, "num_hidden_layers": 30, "num_key_value_heads": 2, "residual_dropout": 0.1,
        "rope_theta": 999999.4420358813, "sliding_window": 4096, "use_bias": True, "vocab_size": 49152,
    }),
    "starcoder2-7b": (7_173_923_840, {
        "model_type": "starcoder2", "hidden_act": "gelu_pytorch_tanh", "hidden_size": 4608, "intermediate_size": 18432,
        "max_position_embeddings": 16384, "norm_epsilon": 1e-05, "num_attention_heads": 36, "num_hidden_layers": 32,
        "num_key_value_heads": 4, "rope_theta": 1000000, "sliding_window": 4096, "use_bias": True,
        "vocab_size": 49152,
    }),
}  # fmt: skip
