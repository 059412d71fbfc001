"""CodeGen."""

SIZES = {"vocab_size": 61, "n_embd": 72, "n_layer": 3, "n_head": 12, "n_positions": 64, "rotary_dim": 4}
CASES = [
    {},
    {"rotary_dim": 6, "activation_function": "gelu", "layer_norm_epsilon": 0.1},
    {"n_inner": 50, "tie_word_embeddings": True, "activation_function": "relu", "n_ctx": 40},
    {"n_head": 4, "n_layer": 1, "rotary_dim": 2},
]
REFUSED = [({"n_head": 6}, "n_head is 6; expected a multiple of 4, the number of groups of heads")]
PUBLISHED = {
    "codegen-350M-mono": (356_712_448, {
        "model_type": "codegen", "n_ctx": 2048, "n_embd": 1024, "n_head": 16, "n_inner": None, "n_layer": 20,
        "n_positions": 2048, "rotary_dim": 32, "scale_attn_weights": True, "tie_word_embeddings": False,
        "vocab_size": 51200,
    }),
    "codegen-2B-mono": (2_779_356_160, {
        "model_type": "codegen", "n_ctx": 2048, "n_embd": 2560, "n_head": 32, "n_inner": None, "n_layer": 32,
        "n_positions": 2048, "rotary_dim": 64, "tie_word_embeddings": False, "vocab_size": 51200,
    }),
}  # fmt: skip
