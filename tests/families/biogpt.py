"""BioGPT."""

SIZES = {
    "vocab_size": 61,
    "hidden_size": 30,
    "intermediate_size": 44,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 64,
}
CASES = [
    {},
    {"scale_embedding": False, "tie_word_embeddings": False, "hidden_act": "relu"},
    {"layer_norm_eps": 0.1, "num_attention_heads": 5},
    {"num_attention_heads": 1, "num_hidden_layers": 1, "hidden_act": "gelu_new", "max_position_embeddings": 50},
]
PUBLISHED = {
    "biogpt": (346_763_264, {
        "model_type": "biogpt", "activation_dropout": 0.0, "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1, "hidden_size": 1024, "intermediate_size": 4096, "layer_norm_eps": 1e-12,
        "layerdrop": 0.0, "max_position_embeddings": 1024, "num_attention_heads": 16, "num_hidden_layers": 24,
        "scale_embedding": True, "vocab_size": 42384,
    }),
    "BioGPT-Large": (1_571_188_800, {
        "model_type": "biogpt", "hidden_act": "gelu", "hidden_size": 1600, "intermediate_size": 6400,
        "layer_norm_eps": 1e-12, "max_position_embeddings": 2048, "num_attention_heads": 25, "num_hidden_layers": 48,
        "scale_embedding": True, "vocab_size": 57717,
    }),
}  # fmt: skip
