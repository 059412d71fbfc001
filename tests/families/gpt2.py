"""GPT-2."""

SIZES = {"vocab_size": 61, "n_embd": 30, "n_layer": 3, "n_head": 6, "n_positions": 64}
CASES = [
    {},
    {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True, "activation_function": "gelu"},
    {"scale_attn_weights": False, "n_inner": 20, "activation_function": "relu", "layer_norm_epsilon": 0.1},
    {"tie_word_embeddings": False, "activation_function": "gelu_fast"},
    {"n_head": 1, "n_layer": 1, "activation_function": "gelu_pytorch_tanh"},
]
PUBLISHED = {
    "gpt2": (124_439_808, {"model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12}),
    "gpt2-medium": (354_823_168, {
        "model_type": "gpt2", "n_ctx": 1024, "n_embd": 1024, "n_head": 16, "n_layer": 24, "n_special": 0,
        "predict_special_tokens": True,
    }),
    "distilgpt2": (81_912_576, {
        "model_type": "gpt2", "_num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0},
        "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 6,
    }),
    "gpt2-xl": (1_557_611_200, {
        "model_type": "gpt2", "n_ctx": 1024, "n_embd": 1600, "n_head": 25, "n_layer": 48, "output_past": True,
    }),
}  # fmt: skip
