"""OPT."""

SIZES = {
    "vocab_size": 61,
    "hidden_size": 30,
    "ffn_dim": 44,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 64,
}
CASES = [
    {},
    {"do_layer_norm_before": False, "word_embed_proj_dim": 10},
    {"tie_word_embeddings": False, "activation_function": "gelu", "word_embed_proj_dim": 40},
    {"do_layer_norm_before": False, "tie_word_embeddings": False, "num_attention_heads": 5},
    {"enable_bias": False},
    {"layer_norm_elementwise_affine": False, "activation_function": "gelu"},
    {"enable_bias": False, "do_layer_norm_before": False},
]
REFUSED = [
    (
        {"do_layer_norm_before": False, "layer_norm_elementwise_affine": False},
        "layer_norm_elementwise_affine is False; expected True: norms after the residual additions need weights",
    ),
    ({"learned_embeddings": False}, "learned_embeddings is False; expected True: transformers' OPT supports no other"),
    ({"_remove_final_layer_norm": True}, "_remove_final_layer_norm is True; expected False: jaxlens implements"),
]
PUBLISHED = {
    "opt-125m": (125_239_296, {
        "model_type": "opt", "_remove_final_layer_norm": False, "activation_dropout": 0.0,
        "activation_function": "relu", "do_layer_norm_before": True, "dropout": 0.1, "ffn_dim": 3072,
        "hidden_size": 768, "init_std": 0.02, "layerdrop": 0.0, "max_position_embeddings": 2048,
        "num_attention_heads": 12, "num_hidden_layers": 12, "prefix": "</s>", "vocab_size": 50272,
        "word_embed_proj_dim": 768,
    }),
    "opt-350m": (331_196_416, {
        "model_type": "opt", "_remove_final_layer_norm": False, "activation_dropout": 0.0,
        "activation_function": "relu", "do_layer_norm_before": False, "dropout": 0.1, "ffn_dim": 4096,
        "hidden_size": 1024, "init_std": 0.02, "layerdrop": 0.0, "max_position_embeddings": 2048,
        "num_attention_heads": 16, "num_hidden_layers": 24, "prefix": "</s>", "vocab_size": 50272,
        "word_embed_proj_dim": 512,
    }),
    "galactica-125m": (125_030_400, {  # computed by hand; the model card says 125 million
        "model_type": "opt", "_remove_final_layer_norm": False, "activation_function": "gelu",
        "do_layer_norm_before": True, "enable_bias": True, "ffn_dim": 3072, "hidden_size": 768,
        "layer_norm_elementwise_affine": True, "learned_embeddings": True, "max_position_embeddings": 2048,
        "num_attention_heads": 12, "num_hidden_layers": 12, "scale_embeddings": False, "vocab_size": 50000,
        "word_embed_proj_dim": 768,
    }),
}  # fmt: skip
