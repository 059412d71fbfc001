"""GPT-J."""

SIZES = {"vocab_size": 61, "n_embd": 60, "n_layer": 3, "n_head": 6, "n_positions": 64, "rotary_dim": 4}
CASES = [
    {},
    {"rotary_dim": 10, "activation_function": "gelu", "layer_norm_epsilon": 0.1},
    {"n_inner": 50, "tie_word_embeddings": True, "activation_function": "relu"},
    {"n_head": 1, "n_layer": 1, "rotary_dim": 2},
]
REFUSED = [
    ({"rotary": False}, "rotary is False; expected True: transformers' GPT-J supports no other value"),
    ({"scale_attn_weights": False}, "scale_attn_weights is False; expected True"),
]
PUBLISHED = {
    # the model card also counts the copies of biases and norms on eight cores
    "gpt-j-6b": (6_050_882_784, {
        "model_type": "gptj", "activation_function": "gelu_new", "gradient_checkpointing": False, "n_embd": 4096,
        "n_head": 16, "n_inner": None, "n_layer": 28, "n_positions": 2048, "rotary": True, "rotary_dim": 64,
        "scale_attn_weights": True, "summary_type": "cls_index", "tie_word_embeddings": False, "vocab_size": 50400,
    }),
    "kogpt": (6_166_502_400, {
        "model_type": "gptj", "activation_function": "gelu_new", "n_embd": 4096, "n_head": 16, "n_inner": None,
        "n_layer": 28, "n_positions": 2048, "rotary": True, "rotary_dim": 64, "scale_attn_weights": True,
        "tie_word_embeddings": False, "vocab_size": 64512,
    }),
}  # fmt: skip
