"""GPT."""

MODEL_TYPE = "openai-gpt"
SIZES = {"vocab_size": 61, "n_embd": 30, "n_layer": 3, "n_head": 6, "n_positions": 64}
CASES = [
    {},
    {"tie_word_embeddings": False, "afn": "silu", "n_head": 5},
    {"layer_norm_epsilon": 0.1, "afn": "relu"},
    {"n_head": 1, "n_layer": 1, "afn": "swish", "n_positions": 40},
]
REFUSED = [({"afn": "gelu_new"}, "afn is 'gelu_new'; expected 'gelu' or 'relu' or 'silu' or 'swish'")]
PUBLISHED = {
    "openai-gpt": (116_534_784, {
        "model_type": "openai-gpt", "afn": "gelu", "n_ctx": 512, "n_embd": 768, "n_head": 12, "n_layer": 12,
        "n_positions": 512, "n_special": 0, "predict_special_tokens": True, "vocab_size": 40478,
    }),
}  # fmt: skip
