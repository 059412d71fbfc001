"""XGLM."""

SIZES = {
    "vocab_size": 61,
    "d_model": 30,
    "ffn_dim": 44,
    "num_layers": 3,
    "attention_heads": 6,
    "max_position_embeddings": 64,
}
CASES = [
    {},
    {"scale_embedding": False, "tie_word_embeddings": False, "activation_function": "relu", "pad_token_id": 1},
    {"d_model": 35, "attention_heads": 7, "num_layers": 1},
    {"attention_heads": 1, "activation_function": "gelu_new", "max_position_embeddings": 50},
]
REFUSED = [({"pad_token_id": 2}, "pad_token_id is 2; expected 0 or 1: transformers zeroes this row")]
PUBLISHED = {
    "xglm-564M": (564_463_616, {
        "model_type": "xglm", "activation_dropout": 0, "activation_function": "gelu", "attention_dropout": 0.1,
        "attention_heads": 16, "d_model": 1024, "decoder_start_token_id": 2, "dropout": 0.1, "ffn_dim": 4096,
        "init_std": 0.02, "layerdrop": 0.0, "max_position_embeddings": 2048, "num_layers": 24, "pad_token_id": 1,
        "scale_embedding": True, "vocab_size": 256008,
    }),
    "xglm-7.5B": (7_492_771_840, {
        "model_type": "xglm", "activation_function": "gelu", "attention_heads": 32, "d_model": 4096, "ffn_dim": 16384,
        "max_position_embeddings": 2048, "num_layers": 32, "pad_token_id": 1, "scale_embedding": True,
        "vocab_size": 256008,
    }),
}  # fmt: skip
